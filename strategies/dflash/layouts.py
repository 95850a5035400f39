"""What the layouts of the DFlash family share: the backbone's names, head fields, facts and checks.

DSpark is the same drafter with a head, so each layout holds both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepspec import Strategy
from deepspec.errors import ConfigError
from deepspec.formats import VOCABULARY, EngineVerdict, NameTable, Rule, sglang_command
from deepspec.interfaces import SequentialHead
from deepspec.strategy import Parts

from .drafter import DFlashDrafter

BACKBONE = (
    Rule("fc.", "drafter.fc."),
    Rule("hidden_norm.", "drafter.hidden_norm."),
    Rule("norm.", "drafter.norm."),
    Rule("layers.", "drafter.layers."),
)
NESTED_HEAD = (
    Rule("confidence_head.proj.", "head.confidence_head."),
    Rule("markov_head.", "head."),
)
FLAT_HEAD = (
    Rule("confidence_proj.", "head.confidence_head."),
    *(Rule(f"{name}.", f"head.{name}.") for name in ("markov_w1", "markov_w2", "gate_proj", "joint_proj")),
)
NESTED = NameTable((*BACKBONE, *NESTED_HEAD, *VOCABULARY))
FLAT = NameTable((*BACKBONE, *FLAT_HEAD, *VOCABULARY))

_SCHEDULING = {
    "sts": "--speculative-dspark-confidence-sts-path",
    "sps": "--speculative-dspark-sps-table-path",
}
_HEADS = {"vanilla": "markov", "gated": "gated", "rnn": "rnn"}
_KINDS = {ours: theirs for theirs, ours in _HEADS.items()}


def head_options(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The head that a configuration describes; raises ConfigError for one that is not known."""
    rank, is_rated = int(fields.get("markov_rank") or 0), bool(fields.get("enable_confidence_head"))
    confidence = "linear" if is_rated else "none"
    if rank == 0:
        return {"type": "none", "confidence": confidence}
    kind = fields.get("markov_head_type") or "vanilla"
    if kind not in _HEADS:
        raise ConfigError(f"{where}: markov_head_type is {kind!r}; known are {', '.join(_HEADS)}")
    options = {"type": _HEADS[kind], "rank": rank, "confidence": confidence}
    if is_rated:
        options["confidence_reads_token"] = bool(fields.get("confidence_head_with_markov", True))
    return options


def head_fields(head: SequentialHead[Any]) -> dict[str, Any]:
    """The fields that describe a head; those that mean nothing for it are left out."""
    weights = head.state_dict()
    rank = weights["markov_w1.weight"].shape[1] if "markov_w1.weight" in weights else 0
    is_rated = "confidence_head.weight" in weights
    fields: dict[str, Any] = {"markov_rank": rank, "enable_confidence_head": is_rated}
    if rank:
        fields["markov_head_type"] = _KINDS[head.name]
    if is_rated:
        width = weights["confidence_head.weight"].shape[1]
        fields["confidence_head_with_markov"] = width > head.context.hidden_size
    return fields


def sglang_verdict(strategy: Strategy) -> EngineVerdict:
    """What SGLang's DSpark makes of a drafter whose every slot drafts."""
    length, has_head = strategy.draft_length, strategy.head.type != "none"
    is_rated = strategy.head.options["confidence"] == "linear"
    return EngineVerdict(
        "sglang",
        loads=has_head or None,
        why="" if has_head else "nobody has tried its DSpark with markov_rank 0",
        command=sglang_command("DSPARK", length, f"--speculative-dspark-block-size {length}"),
        scheduling=_SCHEDULING if is_rated else {},
    )


def strategy_of(draft_length: int, drafter: Mapping[str, Any], head: Mapping[str, Any]) -> Strategy:
    """The published composition with these sizes: DSpark where there is a head, else DFlash."""
    is_plain = head["type"] == "none" and head["confidence"] == "none"
    base = Strategy.named("dflash" if is_plain else "dspark")
    return base.replace(
        draft_length=draft_length, drafter={"type": "dflash", **drafter}, head=dict(head), policy="fixed"
    )


def drafter_of(parts: Parts) -> DFlashDrafter:
    """The drafter of parts that one of these layouts can hold."""
    assert isinstance(parts.drafter, DFlashDrafter), "cannot_hold said so"
    return parts.drafter


def foreign_part(parts: Parts) -> str | None:
    """Why parts are none of the family's."""
    if not isinstance(parts.drafter, DFlashDrafter):
        return f"drafter {parts.drafter.name!r} is none of its kind"
    if parts.head.name not in ("none", *_KINDS):
        return f"it has no place for head {parts.head.name!r}; it has one for {', '.join(('none', *_KINDS))}"
    return None


def slots(draft_length: int, *, from_anchor: bool) -> int:
    """Slots of a block, ``block_size``."""
    return draft_length if from_anchor else draft_length + 1


def facts(strategy: Strategy, *, base: str, written: Sequence[int], slot: str) -> dict[str, str]:
    """What breaks silently, in words; ``base`` and ``slot`` say by what the layout is known."""
    drafter, head = strategy.drafter.options, strategy.head.options
    ids = ", ".join(map(str, drafter["target_layers"]))
    layout = "slot k predicts the token k + 1 behind the anchor"
    if not drafter["sample_from_anchor"]:
        layout = "slot 0 is the anchor and predicts nothing"
    described = strategy.head.type
    if described != "none":
        described += f" of rank {head['rank']}"
    rated = {"linear": "a trained confidence", "none": "no confidence"}[head["confidence"]]
    if head["confidence"] == "linear" and not head.get("confidence_reads_token", True):
        rated += " that reads the hidden state alone"
    return {
        "layer ids": f"{', '.join(map(str, written))}, {base}: outputs of decoder layers {ids}, from 0",
        "taps": str(len(written)),
        "slot layout": f"{layout} ({slot}); {strategy.draft_length} draft tokens",
        "mask token": str(drafter["mask_token_id"]),
        "head": f"{described}, {rated}",
    }
