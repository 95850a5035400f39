"""What the layouts of MTP modules share: the strategy, facts, and whose drafter it is."""

from __future__ import annotations

from collections.abc import Mapping

from deepspec import Strategy
from deepspec.strategy import Parts

from .drafter import MTPDrafter

#: Beginning of our names of the one module.
MODULE = "drafter.depths.0."
#: How many tokens a recycled module drafts is the server's setting.
DRAFT_LENGTH = 3


def strategy_of(draft_length: int, drafter: Mapping[str, object]) -> Strategy:
    """The published composition with these sizes."""
    options = {"type": "mtp", "modules": 1, **drafter}
    return Strategy.named("mtp").replace(draft_length=draft_length, drafter=options, policy="fixed")


def drafter_of(parts: Parts) -> MTPDrafter:
    """The drafter of parts that one of these layouts can hold."""
    assert isinstance(parts.drafter, MTPDrafter), "cannot_hold said so"
    return parts.drafter


def foreign_part(parts: Parts) -> str | None:
    """Why parts are none of one MTP module alone, over the whole vocabulary."""
    drafter = parts.drafter
    if not isinstance(drafter, MTPDrafter):
        return f"drafter {drafter.name!r} is none of its kind"
    if parts.head.name != "none" or parts.head.confidence == "linear":
        return f"it has no place for head {parts.head.name!r} with confidence {parts.head.confidence}"
    if len(drafter.depths) != 1:
        return (
            f"it has one module, and this drafter {len(drafter.depths)}; train with --set drafter.modules=1"
        )
    if drafter.vocabulary.target_ids is not None:
        return "it has no place for a reduced vocabulary"
    return None


def facts(strategy: Strategy, length: str) -> dict[str, str]:
    """What breaks silently, in words; ``length`` says where G is from."""
    fed = (
        "behind the final norm" if strategy.drafter.options["feed_back"] == "post_norm" else "before the norm"
    )
    return {
        "layer ids": "none: it reads the target's last hidden state",
        "taps": "0",
        "slot layout": f"token by token; {strategy.draft_length} draft tokens ({length})",
        "projection": "of [embedding ; hidden state]",
        "fed back": f"the hidden state {fed}",
        "head": "none, no confidence",
    }
