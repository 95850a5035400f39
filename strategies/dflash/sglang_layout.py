"""The layouts that name ``dflash_config``: z-lab's, SpecForge's and SGLang's, and ModelOpt's.

``DFlashDraftModel`` keeps slot 0 for the anchor, ``DSparkDraftModel`` drafts from it. Layer ids count from 0;
embedding and LM head are the target's and not in the file. Head fields stand nested and, where SGLang and
vLLM read them, at the top. ModelOpt's has the heads' tensors without the modules around them.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import Any, ClassVar

from deepspec.errors import ConfigError
from deepspec.formats import (
    TARGET_COPIES,
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    NameTable,
    TargetClaim,
    Written,
    check_layers,
    check_taps,
    decoder_config,
    kept_config,
    layer_fault,
    layer_options,
    sglang_command,
    vllm_command,
)
from deepspec.strategy import Parts

from . import layouts as family

#: Whether slot 0 drafts, by the class of weights.
_FROM_ANCHOR = {"DFlashDraftModel": False, "DSparkDraftModel": True}
_HEAD_FIELDS = ("markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov")


class DFlashConfigFormat(CheckpointFormat, ABC):
    """What the layouts share.

    Attributes:
        is_flat: whether the heads' tensors stand without the modules around them.
    """

    is_flat: ClassVar[bool]

    @property
    def table(self) -> NameTable:
        """Names of tensors."""
        return family.FLAT if self.is_flat else family.NESTED

    def recognise(self, header: Header) -> str | None:
        found = set(_FROM_ANCHOR) & set(header.config.get("architectures") or ())
        if not found or "dflash_config" not in header.config or _is_flat(header) is not self.is_flat:
            return None
        return f"architectures {found.pop()} with dflash_config"

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        fields = _joined(config, where)
        layers = config.get("num_target_layers")
        ids = check_layers(where, fields["target_layer_ids"], layers)
        check_taps(header, len(ids), int(config["hidden_size"]))
        kind = next(name for name in config["architectures"] if name in _FROM_ANCHOR)
        from_anchor, size = _FROM_ANCHOR[kind], int(config["block_size"])
        drafter = {
            **layer_options(config, where),
            "target_layers": ids,
            "mask_token_id": int(fields["mask_token_id"]),
            "sample_from_anchor": from_anchor,
        }
        length = size if from_anchor else size - 1
        strategy = family.strategy_of(length, drafter, family.head_options(fields, where))
        return Layout(
            strategy=strategy,
            table=self.table,
            claim=TargetClaim(int(config["hidden_size"]), int(config["vocab_size"]), layers),
            copies=TARGET_COPIES,
            facts=family.facts(strategy, base="counted from 0", written=ids, slot=f"as {kind} has it"),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        is_plain = parts.head.name == "none" and parts.head.confidence != "linear"
        if not is_plain and not drafter.config.sample_from_anchor:
            return "its drafters with a head draft from slot 0, and this drafter's slot 0 is the anchor"
        if (kind := drafter.config.family(drafter.info)) != "qwen3":
            return f"its layers are like Qwen3's, and this drafter's like {kind or 'its target'}'s"
        if drafter.vocabulary.target_ids is not None or drafter.vocabulary.lm_head is not None:
            return "it has no place for a reduced vocabulary or a LM head of the drafter's own"
        return layer_fault(drafter.config, drafter.info)

    def write(self, draft: Draft) -> Written:
        drafter = family.drafter_of(draft.parts)
        from_anchor = drafter.config.sample_from_anchor
        head = family.head_fields(draft.parts.head) if from_anchor else {}
        nested = {
            **draft.fields.get("dflash_config", {"projector_type": "dspark" if from_anchor else "dflash"}),
            "mask_token_id": drafter.mask_token_id,
            "target_layer_ids": list(drafter.target_layers),
        }
        ours: dict[str, Any] = {
            "architectures": ["DSparkDraftModel" if from_anchor else "DFlashDraftModel"],
            "block_size": family.slots(draft.parts.strategy.draft_length, from_anchor=from_anchor),
            "num_target_layers": draft.target.info.num_layers,
            "num_hidden_layers": len(drafter.layers),
            "dflash_config": nested,
        }
        if not draft.fields:
            nested |= head
        ours |= head  # where engines read them, also when they stood nested alone
        fresh = decoder_config(drafter.config, draft.target.info, num_layers=len(drafter.layers))
        if "num_target_layers" not in draft.fields and draft.fields:
            del ours["num_target_layers"]
        tensors = self.table.to_foreign(draft.weights())
        return Written(kept_config(draft, fresh, ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        length, head = layout.strategy.draft_length, layout.strategy.head
        if not layout.strategy.drafter.options["sample_from_anchor"]:
            vllm = EngineVerdict("vllm", loads=True, command=vllm_command("dflash", length))
            return vllm, EngineVerdict("sglang", loads=True, command=sglang_command("DFLASH", length))
        flat = [name for name in _HEAD_FIELDS[:2] if name not in header.config]
        if head.type != "none" and flat:
            why = f"it reads {flat[0]} at the top of config.json, and here it is nested in dflash_config"
            return EngineVerdict("vllm", loads=False, why=why), EngineVerdict("sglang", loads=False, why=why)
        if self.is_flat and head.type != "none":
            why = (
                "it reads the heads' tensors as markov_head.* and confidence_head.*; export with --to sglang"
            )
            return EngineVerdict("vllm", loads=False, why=why), EngineVerdict("sglang", loads=False, why=why)
        sglang = family.sglang_verdict(layout.strategy)
        if head.type == "markov":
            return EngineVerdict("vllm", loads=True, command=vllm_command("dspark", length)), sglang
        why = "its DSpark loader reads the vanilla head alone"
        return EngineVerdict("vllm", loads=False, why=why), sglang


class SGLangDFlash(DFlashConfigFormat):
    """``DFlashDraftModel`` and ``DSparkDraftModel``."""

    name = "sglang-dflash"
    exports = ("sglang",)
    is_flat = False

    def looked_for(self) -> str:
        return f"architectures {' or '.join(_FROM_ANCHOR)} with dflash_config"


class ModelOptDFlash(DFlashConfigFormat):
    """The same with ``markov_w1.weight`` and ``confidence_proj.*`` for the heads."""

    name = "modelopt-dflash"
    exports = ("modelopt",)
    is_flat = True

    def looked_for(self) -> str:
        return "the same with tensors markov_w1.weight or confidence_proj.*"


def _is_flat(header: Header) -> bool:
    return any(name.startswith(("markov_w1.", "confidence_proj.")) for name in header.files)


def _joined(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The drafter's fields, nested or at the top; raises ConfigError where the two differ."""
    nested = config["dflash_config"]
    names = ("mask_token_id", "target_layer_ids", *_HEAD_FIELDS)
    fields = {}
    for name in names:
        found = [place[name] for place in (nested, config) if place.get(name) is not None]
        if len(found) == 2 and found[0] != found[1]:
            raise ConfigError(f"{where}: {name} is {found[0]} in dflash_config and {found[1]} beside it")
        if found:
            fields[name] = found[0]
    if missing := [name for name in names[:2] if name not in fields]:
        raise ConfigError(f"{where}: it lacks {missing[0]}; convert it again")
    return fields
