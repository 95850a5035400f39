"""speculators' Eagle 3, which vLLM reads: layer ids count from 1, and flags say where norms stand."""

from __future__ import annotations

from typing import Any

from deepspec.errors import ConfigError
from deepspec.formats import (
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    SharedCopy,
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

#: What vLLM's Eagle 3 was made for.
_TAPS = 3


class SpeculatorsEagle3(CheckpointFormat):
    """``speculators_model_type`` eagle3."""

    name = "speculators-eagle3"
    exports = ("speculators", "vllm")

    def looked_for(self) -> str:
        return "speculators_model_type eagle3"

    def recognise(self, header: Header) -> str | None:
        kind = header.config.get("speculators_model_type")
        return "speculators_model_type eagle3" if kind == "eagle3" else None

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        claim, written = speculators_claim(header), config.get("eagle_aux_hidden_state_layer_ids")
        if config.get("norm_before_fc") and config.get("fc_norm"):
            raise ConfigError(f"{where}: norm_before_fc and fc_norm exclude each other, and both are true")
        norm = "joint" if config.get("norm_before_fc") else "each" if config.get("fc_norm") else "none"
        drafter = {
            **layer_options(config["transformer_layer_config"], where),
            "feature_norm": norm,
            "norm_before_residual": bool(config.get("norm_before_residual", False)),
            "feed_back": "post_norm" if config.get("norm_output") else "pre_norm",
        }
        counted = "not in the file: a low, a middle and a high one"
        if written is not None:
            drafter["target_layers"] = ids = check_layers(where, written, None, shift=1)
            check_taps(header, len(ids), claim.hidden_size)
            layers = ", ".join(map(str, ids))
            counted = (
                f"{', '.join(map(str, written))}, counted from 1: outputs of decoder layers {layers}, from 0"
            )
        if int(config["draft_vocab_size"]) != claim.vocab_size:
            drafter["draft_vocab_size"] = int(config["draft_vocab_size"])
        methods = config.get("speculators_config", {}).get("proposal_methods") or [{}]
        strategy = family.strategy_of(int(methods[0].get("speculative_tokens", 7)), drafter)
        own = "own_embedding" if config.get("embed_requires_grad") else None
        return Layout(
            strategy=strategy,
            table=family.TABLE,
            claim=claim,
            copies=(
                SharedCopy("embed_tokens.weight", "embedding", own),
                SharedCopy("lm_head.weight", "lm_head", "own_head"),
            ),
            ignored=("t2d",),
            facts=family.facts(strategy, layers=counted, length="speculative_tokens"),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        if drafter.config.family(drafter.info) == "gemma4":
            return "its layers are like Qwen3's or Llama's, and this drafter's like Gemma 4's"
        return layer_fault(drafter.config, drafter.info)

    def write(self, draft: Draft) -> Written:
        drafter, info = family.drafter_of(draft.parts), draft.target.info
        config, ids = drafter.config, drafter.vocabulary.target_ids
        ours: dict[str, Any] = {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "draft_vocab_size": info.vocab_size if ids is None else len(ids),
            "norm_before_residual": config.norm_before_residual,
            "norm_before_fc": config.feature_norm == "joint",
            "fc_norm": config.feature_norm == "each",
            "norm_output": config.feed_back == "post_norm",
            "embed_requires_grad": config.own_embedding,
            "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in drafter.target_layers],
        }
        fresh = {
            "transformer_layer_config": decoder_config(config, info, num_layers=len(drafter.layers)),
            "tie_word_embeddings": False,
            **speculators_config("eagle3", draft.parts.strategy.draft_length, draft),
        }
        tensors = family.TABLE.to_foreign(draft.weights())
        tensors |= {"lm_head.weight": drafter.vocabulary.weight}
        tensors.setdefault("embed_tokens.weight", info.embedding)
        if ids is not None:
            tensors["t2d"] = membership(ids, info.vocab_size)
        return Written(kept_config(draft, fresh, ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        drafter = layout.strategy.drafter.options
        taps = len(drafter.get("target_layers") or range(_TAPS))
        untried = [
            why
            for why, is_so in (
                (f"nobody has tried it with {taps} taps; it was made for {_TAPS}", taps != _TAPS),
                ("nobody has tried it with norms of queries and keys", drafter["layer"] == "qwen3"),
            )
            if is_so
        ]
        command = vllm_command("eagle3", layout.strategy.draft_length)
        missing = "norm_before_residual" not in header.config
        if missing:
            why = "it takes norm_before_residual for true where config.json does not say; write it there"
            vllm = EngineVerdict("vllm", loads=False, why=why)
        else:
            why = untried[0] if untried else ""
            vllm = EngineVerdict("vllm", loads=None if untried else True, why=why, command=command)
        return vllm, EngineVerdict(
            "sglang", loads=False, why="it reads the fields of another layout (--to sglang)"
        )
