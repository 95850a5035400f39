"""DeepSpec's released Eagle 3: the target's text configuration and the draft's fields beside it.

Embedding and LM head are in the file, frozen copies of the target's; there is no reduced vocabulary.
"""

from __future__ import annotations

import math
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
)
from deepspec.strategy import Parts

from . import layouts as family

_ARCHITECTURES = ("Qwen3Eagle3Model", "Gemma4Eagle3Model")


class DeepSpecEagle3(CheckpointFormat):
    """``Qwen3Eagle3Model`` and ``Gemma4Eagle3Model``."""

    name = "deepspec-eagle3"
    exports = ("deepspec",)

    def looked_for(self) -> str:
        return f"architectures {' or '.join(_ARCHITECTURES)}"

    def recognise(self, header: Header) -> str | None:
        found = set(_ARCHITECTURES) & set(header.config.get("architectures") or ())
        return f"architectures {found.pop()}" if found else None

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        layers, size = config.get("num_target_layers"), int(config["hidden_size"])
        ids = check_layers(where, config["target_layer_ids"], layers)
        check_taps(header, len(ids), size)
        drafter = {**layer_options(config, where), "target_layers": ids}
        strategy = family.strategy_of(int(config["ttt_length"]), drafter)
        counted = f"{', '.join(map(str, ids))}, counted from 0: outputs of these decoder layers"
        return Layout(
            strategy=strategy,
            table=family.TABLE,
            claim=TargetClaim(
                size, int(config["vocab_size"]), layers, config.get("target_model_name_or_path")
            ),
            copies=TARGET_COPIES,
            facts=family.facts(strategy, layers=counted, length="ttt_length"),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        if drafter.config.family(drafter.info) == "llama":
            return "its layers have norms of queries and keys, and this drafter's have none"
        return family.unusual(drafter) or layer_fault(drafter.config, drafter.info)

    def write(self, draft: Draft) -> Written:
        drafter, strategy = family.drafter_of(draft.parts), draft.parts.strategy
        is_gemma, depth = drafter.config.family(drafter.info) == "gemma4", len(drafter.layers)
        info = draft.target.info
        ours: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[is_gemma]],
            "num_target_layers": info.num_layers,
            "num_hidden_layers": depth,
            "draft_num_hidden_layers": depth,
            "layer_types": ["full_attention"] * depth,
            "target_layer_ids": list(drafter.target_layers),
            "ttt_length": strategy.draft_length,
            "tie_word_embeddings": False,
        }
        tensors = family.TABLE.to_foreign(draft.weights())
        tensors |= {"embed_tokens.weight": info.embedding, "lm_head.weight": info.lm_head}
        if is_gemma:
            for number in range(len(drafter.layers)):
                tensors.setdefault(f"layers.{number}.layer_scalar", torch.ones(1))
        return Written(kept_config(draft, _fresh(draft), ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        why = "it knows Eagle 3 as LlamaForCausalLMEagle3 and takes three taps; this class it does not know"
        vllm = EngineVerdict("vllm", loads=False, why="it knows this class not; export with --to speculators")
        return vllm, EngineVerdict("sglang", loads=False, why=why)


def _fresh(draft: Draft) -> dict[str, Any]:
    """The fields around a new drafter's."""
    drafter, info = family.drafter_of(draft.parts), draft.target.info
    decay = draft.parts.strategy.objective.position_decay
    training = {
        "step_loss_decay": 1.0 if decay is None else round(math.exp(-1 / decay), 6),
        "target_model_name_or_path": draft.target_name,
    }
    if drafter.config.family(drafter.info) == "gemma4":
        target = draft.target.model.config.get_text_config().to_dict()
        return {**target, **training, "enable_moe_block": False, "hidden_size_per_layer_input": 0}
    return {**decoder_config(drafter.config, info, num_layers=len(drafter.layers)), **training}
