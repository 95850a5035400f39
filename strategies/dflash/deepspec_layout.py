"""DeepSpec's released layout: the target's text configuration and the draft's fields beside it.

One layout for DSpark and DFlash, whose ``markov_rank`` is 0; embedding and LM head are in the file, frozen
copies of the target's. Layer ids count from 0, and every slot drafts.
"""

from __future__ import annotations

from typing import Any

import torch

from deepspec.formats import (
    TARGET_COPIES,
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    TargetClaim,
    Written,
    check_layers,
    check_taps,
    decoder_config,
    kept_config,
    layer_fault,
    layer_options,
    vllm_command,
)
from deepspec.strategy import Parts

from . import layouts as family

_ARCHITECTURES = ("Qwen3DSparkModel", "Gemma4DSparkModel")
#: Anchors of a training sequence: a field that loaders require and only training reads.
_NUM_ANCHORS = 512


class DeepSpecDFlash(CheckpointFormat):
    """``Qwen3DSparkModel`` and ``Gemma4DSparkModel``."""

    name = "deepspec-dspark"
    exports = ("deepspec",)

    def looked_for(self) -> str:
        return f"architectures {' or '.join(_ARCHITECTURES)} with target_layer_ids"

    def recognise(self, header: Header) -> str | None:
        found = set(_ARCHITECTURES) & set(header.config.get("architectures") or ())
        if not found or "target_layer_ids" not in header.config or "dflash_config" in header.config:
            return None
        return f"architectures {found.pop()}"

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        layers = config.get("num_target_layers")
        ids = check_layers(where, config["target_layer_ids"], layers)
        check_taps(header, len(ids), int(config["hidden_size"]))
        drafter = {
            **layer_options(config, where),
            "target_layers": ids,
            "mask_token_id": int(config["mask_token_id"]),
            "sample_from_anchor": True,
        }
        head = family.head_options(config, where)
        strategy = family.strategy_of(int(config["block_size"]), drafter, head)
        return Layout(
            strategy=strategy,
            table=family.NESTED,
            claim=TargetClaim(int(config["hidden_size"]), int(config["vocab_size"]), layers),
            copies=TARGET_COPIES,
            facts=family.facts(
                strategy,
                base="counted from 0",
                written=config["target_layer_ids"],
                slot="this layout's only one",
            ),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        if not drafter.config.sample_from_anchor:
            return "in this layout every slot drafts, and this drafter's anchor slot does not"
        if drafter.config.family(drafter.info) == "llama":
            return "its layers have norms of queries and keys, and this drafter's have none"
        if fault := layer_fault(drafter.config, drafter.info):
            return fault
        if drafter.vocabulary.target_ids is not None or drafter.vocabulary.lm_head is not None:
            return "it has no place for a reduced vocabulary or a LM head of the drafter's own"
        return None

    def write(self, draft: Draft) -> Written:
        drafter = family.drafter_of(draft.parts)
        is_gemma = drafter.config.family(drafter.info) == "gemma4"
        ours: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[is_gemma]],
            "num_target_layers": draft.target.info.num_layers,
            "num_hidden_layers": len(drafter.layers),
            "layer_types": ["full_attention"] * len(drafter.layers),
            "block_size": draft.parts.strategy.draft_length,
            "tie_word_embeddings": False,
            "mask_token_id": drafter.mask_token_id,
            "target_layer_ids": list(drafter.target_layers),
            **family.head_fields(draft.parts.head),
        }
        tensors = family.NESTED.to_foreign(draft.weights())
        info = draft.target.info
        tensors |= {"embed_tokens.weight": info.embedding, "lm_head.weight": info.lm_head}
        if is_gemma:
            for number in range(len(drafter.layers)):
                tensors.setdefault(f"layers.{number}.layer_scalar", torch.ones(1))
        return Written(kept_config(draft, _fresh(draft), ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        length = layout.strategy.draft_length
        is_markov = layout.strategy.head.type == "markov"
        if is_markov:
            verdict = EngineVerdict("vllm", loads=True, command=vllm_command("dspark", length))
        else:
            why = "its DSpark loader reads the vanilla head alone; it has no DFlash loader for this layout"
            verdict = EngineVerdict("vllm", loads=False, why=why)
        return verdict, family.sglang_verdict(layout.strategy)


def _fresh(draft: Draft) -> dict[str, Any]:
    """The fields around a new drafter's."""
    drafter, info = family.drafter_of(draft.parts), draft.target.info
    if drafter.config.family(drafter.info) == "gemma4":
        target = draft.target.model.config.get_text_config().to_dict()
        return {
            **target,
            "num_anchors": _NUM_ANCHORS,
            "enable_moe_block": False,
            "hidden_size_per_layer_input": 0,
        }
    fields = decoder_config(drafter.config, info, num_layers=len(drafter.layers))
    return {**fields, "num_anchors": _NUM_ANCHORS}
