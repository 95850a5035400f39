"""speculators' MTP: one recycled module by itself, named ``mtp_layers.0``; what is fed back is normed.

Norms of Qwen3-Next and Qwen3.5 are stored less one. Embedding and LM head are the target's, not in the file.
"""

from __future__ import annotations

from typing import Any

from deepspec.errors import ConfigError
from deepspec.formats import (
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    NameTable,
    Rule,
    Written,
    is_plain,
    kept_config,
    speculators_claim,
    speculators_config,
)
from deepspec.strategy import Parts

from . import layouts
from .native import attention_options, norms, norms_less_one

_BEGINS = {
    "hidden_layernorm.": "hidden_layernorm.",
    "token_layernorm.": "token_layernorm.",
    "input_proj.": "input_proj.",
    "final_layernorm.": "norm.",
    "": "layers.0.",
}
#: Kinds of decoder layers that the layout has, and whether their norms are stored less one.
_KINDS = {"qwen3": False, "qwen3_next": True, "qwen3_5_text": True}


def table(kind: str) -> NameTable:
    """Names of the module's tensors, for a kind of decoder layers."""
    rules = [(f"mtp_layers.0.{theirs}", layouts.MODULE + ours) for theirs, ours in _BEGINS.items()]
    if _KINDS[kind]:
        return NameTable(tuple(Rule(*names, norms, norms_less_one) for names in rules))
    return NameTable(tuple(Rule(*names) for names in rules))


class SpeculatorsMTP(CheckpointFormat):
    """``speculators_model_type`` mtp."""

    name = "speculators-mtp"
    exports = ("speculators",)

    def looked_for(self) -> str:
        return "speculators_model_type mtp"

    def recognise(self, header: Header) -> str | None:
        kind = header.config.get("speculators_model_type")
        return "speculators_model_type mtp" if kind == "mtp" else None

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        decoder = config["transformer_layer_config"]
        kind = decoder.get("model_type")
        if kind not in _KINDS:
            raise ConfigError(f"{where}: its layer is that of {kind!r}; known are {', '.join(_KINDS)}")
        names = table(kind)
        shapes = {
            str(names.our_name(name)).removeprefix(layouts.MODULE): shape
            for name, shape in header.shapes(header.files).items()
        }
        methods = config.get("speculators_config", {}).get("proposal_methods") or [{}]
        drafter = {**attention_options(decoder, shapes)[0], "feed_back": "post_norm"}
        strategy = layouts.strategy_of(
            int(methods[0].get("speculative_tokens", layouts.DRAFT_LENGTH)), drafter
        )
        return Layout(
            strategy=strategy,
            table=names,
            claim=speculators_claim(header),
            facts=layouts.facts(strategy, "speculative_tokens"),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := layouts.foreign_part(parts):
            return fault
        drafter = layouts.drafter_of(parts)
        if drafter.built.feed_back == "pre_norm":
            return "it feeds back what is behind the final norm, and this drafter what is before it"
        if drafter.info.embedding_scale != 1.0 or drafter.info.final_softcap is not None:
            return "its loader neither scales embeddings nor caps logits, as this target does"
        return None

    def write(self, draft: Draft) -> Written:
        decoder = draft.fields.get("transformer_layer_config") or _decoder(draft)
        ours: dict[str, Any] = {
            "architectures": ["MTPDraftModel"],
            "speculators_model_type": "mtp",
            "num_nextn_predict_layers": 1,
            "transformer_layer_config": decoder,
        }
        fresh = {
            "tie_word_embeddings": False,
            **speculators_config("mtp", draft.parts.strategy.draft_length, draft),
        }
        tensors = table(decoder["model_type"]).to_foreign(draft.weights())
        return Written(kept_config(draft, fresh, ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        why = "it loads an MTP module in its target's checkpoint (--to vllm, --to sglang)"
        return EngineVerdict("vllm", loads=None, why=why), EngineVerdict("sglang", loads=False, why=why)


def _decoder(draft: Draft) -> dict[str, Any]:
    """The configuration of a new module's layer: the target's family where it is known, else Qwen3's."""
    built, info = layouts.drafter_of(draft.parts).built, draft.target.info
    text = draft.target.model.config.get_text_config().to_dict()
    kind = str(text.get("model_type"))
    if _KINDS.get(kind):
        return text
    if built.attention_gate or not built.qk_norm or not is_plain(info.rope, info.head_dim):
        raise ConfigError(
            "--to speculators: this MTP layer's attention is not like that of Qwen3, which it takes"
        )
    heads = built.num_heads or info.num_heads
    return {
        "model_type": "qwen3",
        "hidden_size": info.hidden_size,
        "intermediate_size": built.intermediate_size or info.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": built.num_kv_heads or info.num_kv_heads,
        "head_dim": info.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": info.rms_norm_eps,
        "rope_theta": info.rope.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": info.rope.theta},
        "vocab_size": info.vocab_size,
        "max_position_embeddings": info.max_positions,
        "tie_word_embeddings": False,
    }
