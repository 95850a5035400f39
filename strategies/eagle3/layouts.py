"""What the layouts of Eagle 3 share: names, the strategy, facts and checks."""

from __future__ import annotations

from collections.abc import Mapping

from deepspec import Strategy
from deepspec.formats import VOCABULARY, NameTable, Rule
from deepspec.strategy import Parts

from .drafter import Eagle3Drafter

BACKBONE = (
    Rule("fc.", "drafter.fc."),
    Rule("fc_norm.", "drafter.fc_norm."),
    Rule("input_norm.", "drafter.input_norm."),
    Rule("norm.", "drafter.norm."),
    Rule("embed_tokens.weight", "drafter.embedding"),
)
TABLE = NameTable((*BACKBONE, Rule("layers.", "drafter.layers."), *VOCABULARY))


def strategy_of(draft_length: int, drafter: Mapping[str, object]) -> Strategy:
    """The published composition with these sizes."""
    return Strategy.named("eagle3").replace(
        draft_length=draft_length, drafter={"type": "eagle3", **drafter}, policy="fixed"
    )


def drafter_of(parts: Parts) -> Eagle3Drafter:
    """The drafter of parts that one of these layouts can hold."""
    assert isinstance(parts.drafter, Eagle3Drafter), "cannot_hold said so"
    return parts.drafter


def foreign_part(parts: Parts) -> str | None:
    """Why parts are none of an Eagle 3 drafter alone."""
    if not isinstance(parts.drafter, Eagle3Drafter):
        return f"drafter {parts.drafter.name!r} is none of its kind"
    if parts.head.name != "none" or parts.head.confidence == "linear":
        return f"it has no place for head {parts.head.name!r} with confidence {parts.head.confidence}"
    return None


def unusual(drafter: Eagle3Drafter, *allowed: str) -> str | None:
    """Why a drafter's options have no place, but for the ``allowed`` ones."""
    config = drafter.config
    usual = {
        "feature_norm": "none",
        "norm_before_residual": False,
        "feed_back": "pre_norm",
        "own_head": False,
        "own_embedding": False,
        "draft_vocab_size": None,
    }
    found = [name for name, value in usual.items() if name not in allowed and getattr(config, name) != value]
    if not found:
        return None
    return f"it has no place for drafter.{found[0]}={getattr(config, found[0])}"


def facts(strategy: Strategy, *, layers: str, length: str) -> dict[str, str]:
    """What breaks silently, in words; ``layers`` says how ids are counted, ``length`` where G is from."""
    drafter = strategy.drafter.options
    taps = drafter.get("target_layers")
    residual = "the feature behind its norm" if drafter.get("norm_before_residual") else "the feature itself"
    fed = "behind the final norm" if drafter.get("feed_back") == "post_norm" else "before the final norm"
    return {
        "layer ids": layers,
        "taps": "3, by default" if taps is None else str(len(taps)),
        "slot layout": f"token by token; {strategy.draft_length} draft tokens ({length})",
        "residual stream": residual,
        "fed back": f"the hidden state {fed}",
        "head": "none, no confidence",
    }
