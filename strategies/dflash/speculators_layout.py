"""The layout of speculators, which vLLM reads: DFlash and DSpark.

Layer ids count from 1 (0 is the embedding). ``sample_from_anchor`` says what slot 0 is for, and how many
tokens are drafted follows from it; a file that says otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspec.errors import ConfigError
from deepspec.formats import (
    TARGET_COPIES,
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    Written,
    check_layers,
    check_taps,
    decoder_config,
    kept_config,
    layer_fault,
    layer_options,
    membership,
    speculators_claim,
    speculators_config,
    vllm_command,
)
from deepspec.strategy import Parts

from . import layouts as family

#: Each type's class of weights, and whether slot 0 drafts when the file does not say.
_TYPES = {"dflash": ("DFlashSpeculator", False), "dspark": ("DSparkSpeculator", True)}


class SpeculatorsDFlash(CheckpointFormat):
    """``speculators_model_type`` dflash and dspark."""

    name = "speculators-dflash"
    exports = ("speculators", "vllm")

    def looked_for(self) -> str:
        return "speculators_model_type dflash or dspark"

    def recognise(self, header: Header) -> str | None:
        kind = header.config.get("speculators_model_type")
        return f"speculators_model_type {kind}" if kind in _TYPES else None

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        decoder = config["transformer_layer_config"]
        claim = speculators_claim(header)
        written = config.get("aux_hidden_state_layer_ids")
        if written is None:
            raise ConfigError(f"{where}: it names no layers (aux_hidden_state_layer_ids); convert it again")
        ids = check_layers(where, written, None, shift=1)
        check_taps(header, len(ids), claim.hidden_size)
        from_anchor, length = _slots(config, where)
        drafter = {
            **layer_options(decoder, where),
            "target_layers": ids,
            "mask_token_id": config.get("mask_token_id"),
            "sample_from_anchor": from_anchor,
        }
        size = int(config["draft_vocab_size"])
        if size != claim.vocab_size:
            drafter["draft_vocab_size"] = size
        fields = config if config["speculators_model_type"] == "dspark" else {}
        strategy = family.strategy_of(length, drafter, family.head_options(_with_defaults(fields), where))
        return Layout(
            strategy=strategy,
            table=family.NESTED,
            claim=claim,
            copies=TARGET_COPIES,
            ignored=("t2d",),
            facts=family.facts(
                strategy,
                base="counted from 1",
                written=written,
                slot=f"sample_from_anchor {from_anchor}".lower(),
            ),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        if (kind := drafter.config.family(drafter.info)) != "qwen3":
            return f"its layers are like Qwen3's, and this drafter's like {kind or 'its target'}'s"
        if drafter.vocabulary.lm_head is not None:
            return "its LM head is the target's, and this drafter has one of its own"
        return layer_fault(drafter.config, drafter.info)

    def write(self, draft: Draft) -> Written:
        drafter, strategy = family.drafter_of(draft.parts), draft.parts.strategy
        has_head = draft.parts.head.name != "none" or draft.parts.head.confidence == "linear"
        kind = draft.fields.get("speculators_model_type") or ("dspark" if has_head else "dflash")
        from_anchor, info = drafter.config.sample_from_anchor, draft.target.info
        ids = drafter.vocabulary.target_ids
        ours: dict[str, Any] = {
            "architectures": [_TYPES[kind][0]],
            "speculators_model_type": kind,
            "draft_vocab_size": info.vocab_size if ids is None else len(ids),
            "block_size": family.slots(strategy.draft_length, from_anchor=from_anchor),
            "aux_hidden_state_layer_ids": [layer + 1 for layer in drafter.target_layers],
            "mask_token_id": drafter.mask_token_id,
            "sample_from_anchor": from_anchor,
            **(family.head_fields(draft.parts.head) if kind == "dspark" else {}),
        }
        fresh = {
            "transformer_layer_config": decoder_config(drafter.config, info, num_layers=len(drafter.layers)),
            "sliding_window_non_causal": False,
            "tie_word_embeddings": False,
            **speculators_config(kind, strategy.draft_length, draft),
        }
        tensors = family.NESTED.to_foreign(draft.weights())
        if ids is not None:
            tensors |= {"lm_head.weight": drafter.vocabulary.weight, "t2d": membership(ids, info.vocab_size)}
        return Written(kept_config(draft, fresh, _said(ours, draft.fields)), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        kind, head = header.config["speculators_model_type"], layout.strategy.head.type
        is_anchor = layout.strategy.drafter.options["sample_from_anchor"]
        command = vllm_command(kind, layout.strategy.draft_length)
        if kind == "dspark" and head != "markov":
            why = f"its DSpark loader reads the vanilla head alone, and this one's is {head}"
            vllm = EngineVerdict("vllm", loads=False, why=why)
        elif kind == "dflash" and is_anchor:
            why = "its DFlash takes slot 0 for the anchor, and here slot 0 drafts"
            vllm = EngineVerdict("vllm", loads=False, why=why)
        else:
            vllm = EngineVerdict("vllm", loads=True, command=command)
        return vllm, EngineVerdict(
            "sglang", loads=False, why="it reads the fields of another layout (--to sglang)"
        )


def _slots(config: Mapping[str, Any], where: str) -> tuple[bool, int]:
    """Whether slot 0 drafts, and how many tokens are drafted."""
    from_anchor = config.get("sample_from_anchor")
    if from_anchor is None:
        from_anchor = _TYPES[config["speculators_model_type"]][1]
    size = int(config.get("block_size", 8))
    length = size if from_anchor else size - 1
    methods = config.get("speculators_config", {}).get("proposal_methods", [])
    said = methods[0].get("speculative_tokens") if methods else None
    if said is not None and int(said) != length:
        raise ConfigError(
            f"{where}: it says {said} speculative_tokens, and block_size {size} with sample_from_anchor "
            f"{str(from_anchor).lower()} makes {length}; one of the three is wrong, and a wrong slot "
            "layout costs "
            "nearly all acceptance: ask whoever wrote it"
        )
    return bool(from_anchor), length


def _with_defaults(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """A DSpark's head fields with the layout's defaults; those of a DFlash are none."""
    if not fields:
        return {}
    return {"markov_rank": 256, "enable_confidence_head": True, **fields}


def _said(ours: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a file that is written again left to the layout's defaults."""
    left = {"sample_from_anchor"} - fields.keys() if fields else set()
    return {key: value for key, value in ours.items() if key not in left}
