"""MTP modules in their target's own checkpoint, the safe way to serve them: one model.

A run goes there only where the target's family has such a module and its layer is of the same kind.
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
    SharedCopy,
    TargetClaim,
    Written,
    sglang_command,
    vllm_command,
)
from deepspec.strategy import Parts

from . import layouts
from .native import COPIES, check_native, deepseek_table, find_native, native_options, qwen_table

#: Families whose module engines know: whether they name it ``mtp.*``, and the field that counts modules.
_FAMILIES = {
    "qwen3_next": (True, "num_nextn_predict_layers"),
    "qwen3_5_text": (True, "mtp_num_hidden_layers"),
    "glm4_moe": (False, "num_nextn_predict_layers"),
    "deepseek_v3": (False, "num_nextn_predict_layers"),
}


class NativeMTP(CheckpointFormat):
    """``mtp.*``, or a layer behind the last one."""

    name = "native-mtp"
    exports = ("sglang", "vllm")

    def looked_for(self) -> str:
        return "tensors mtp.*, or of a layer behind the last one, in a target's checkpoint"

    def recognise(self, header: Header) -> str | None:
        native = find_native(header)
        return f"tensors {native.prefix}*" if native.names else None

    def read(self, header: Header) -> Layout:
        native, where = find_native(header), f"{header.what}: {header.name!r}"
        check_native(native, where)
        drafter = {**native_options(header, native)[0], "feed_back": native.feed_back}
        strategy = layouts.strategy_of(layouts.DRAFT_LENGTH, drafter)
        config = native.config
        return Layout(
            strategy=strategy,
            table=native.table(layouts.MODULE),
            claim=TargetClaim(
                int(config["hidden_size"]), int(config["vocab_size"]), int(config["num_hidden_layers"])
            ),
            copies=tuple(SharedCopy(native.prefix + name, of) for name, of in COPIES),
            within=native.prefix,
            sets_length=False,
            facts=layouts.facts(strategy, "the server's setting, not in the file"),
            fields=header.config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        return layouts.foreign_part(parts)

    def write(self, draft: Draft) -> Written:
        config = draft.target.model.config.to_dict()
        text = config.get("text_config", config)
        kind = str(text.get("model_type"))
        if kind not in _FAMILIES:
            raise ConfigError(
                f"targets of model_type {kind!r} have no place for an MTP module in their checkpoint; "
                "those that "
                f"have are {', '.join(_FAMILIES)}; it can go --to speculators"
            )
        is_qwen, count = _FAMILIES[kind]
        drafter = layouts.drafter_of(draft.parts)
        if drafter.built.attention_gate != is_qwen or (is_qwen and not drafter.built.qk_norm):
            raise ConfigError(
                f"the MTP layer of {kind!r} has {'a gate' if is_qwen else 'no gate'} in its attention; "
                "train with "
                f"--set drafter.attention_gate={str(is_qwen).lower()}, or start from drafter.native_weights"
            )
        info = draft.target.info
        table = qwen_table(layouts.MODULE) if is_qwen else deepseek_table(info.num_layers, layouts.MODULE)
        tensors: dict[str, Any] = table.to_foreign(draft.weights())
        if not is_qwen:
            prefix = f"model.layers.{info.num_layers}."
            tensors |= {prefix + name: getattr(info, of) for name, of in COPIES}
        text[count] = 1
        config["architectures"] = draft.target.model.config.architectures
        return Written(config, tensors, with_target=True)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        length = layout.strategy.draft_length
        chain = (f"--speculative-num-steps {length}", "--speculative-eagle-topk 1")
        return (
            EngineVerdict("vllm", loads=True, command=vllm_command("mtp", length, has_model=False)),
            EngineVerdict(
                "sglang",
                loads=True,
                command=sglang_command("NEXTN", length, *chain, has_model=False),
            ),
        )
