"""``LlamaForCausalLMEagle3``, as SGLang, SpecForge and ModelOpt write it: a Llama layer, ``midlayer``.

Layer ids count from 0 in ``eagle_config`` and from 1 at the top, where vLLM reads them; without either they
are a low, a middle and a high layer. The file says nothing of how many tokens are drafted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspec.errors import ConfigError
from deepspec.formats import (
    VOCABULARY,
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Header,
    Layout,
    NameTable,
    Rule,
    SharedCopy,
    TargetClaim,
    Written,
    check_layers,
    check_taps,
    decoder_config,
    kept_config,
    layer_fault,
    layer_options,
    membership,
    sglang_command,
    vllm_command,
)
from deepspec.strategy import Parts

from . import layouts as family

_ARCHITECTURE = "LlamaForCausalLMEagle3"
_IDS = "eagle_aux_hidden_state_layer_ids"
_TAPS = 3
#: How many tokens are drafted is the server's setting.
_DRAFT_LENGTH = 7
TABLE = NameTable((*family.BACKBONE, Rule("midlayer.", "drafter.layers.0."), *VOCABULARY))


class SGLangEagle3(CheckpointFormat):
    """``LlamaForCausalLMEagle3``."""

    name = "sglang-eagle3"
    exports = ("sglang",)

    def looked_for(self) -> str:
        return f"architectures {_ARCHITECTURE}"

    def recognise(self, header: Header) -> str | None:
        has_it = _ARCHITECTURE in (header.config.get("architectures") or ())
        return f"architectures {_ARCHITECTURE}" if has_it else None

    def read(self, header: Header) -> Layout:
        config, where = header.config, f"{header.what} {header.name!r}"
        size, vocab = int(config["hidden_size"]), int(config["vocab_size"])
        ids = _layer_ids(config, where)
        drafter = {
            **layer_options({**config, "model_type": "llama"}, where),
            "norm_before_residual": bool(config.get("norm_before_residual", False)),
        }
        counted = "not in the file: a low, a middle and a high one"
        if ids is not None:
            drafter["target_layers"] = ids
            counted = f"{', '.join(map(str, ids))}, counted from 0: outputs of these decoder layers"
        check_taps(header, len(ids or range(_TAPS)), size)
        draft_vocab = int(config.get("draft_vocab_size") or vocab)
        if "d2t" in header.files:
            drafter["draft_vocab_size"] = draft_vocab
        strategy = family.strategy_of(_DRAFT_LENGTH, drafter)
        return Layout(
            strategy=strategy,
            table=TABLE,
            claim=TargetClaim(int(config.get("target_hidden_size") or size), vocab),
            copies=(
                SharedCopy("embed_tokens.weight", "embedding"),
                SharedCopy("lm_head.weight", "lm_head", "own_head"),
            ),
            ignored=("t2d",),
            sets_length=False,
            facts=family.facts(strategy, layers=counted, length="the server's setting, not in the file"),
            fields=config,
        )

    def cannot_hold(self, parts: Parts) -> str | None:
        if fault := family.foreign_part(parts):
            return fault
        drafter = family.drafter_of(parts)
        if (kind := drafter.config.family(drafter.info)) != "llama":
            like = f"its layer is like Llama's, and this drafter's like {kind or 'its target'}'s"
            return f"{like}; train with --set drafter.layer=llama"
        if len(drafter.layers) != 1 or len(drafter.target_layers) != _TAPS:
            taps = len(drafter.target_layers)
            return f"it has one layer and {_TAPS} taps, and this drafter {len(drafter.layers)} and {taps}"
        return family.unusual(drafter, "own_head", "draft_vocab_size") or layer_fault(
            drafter.config, drafter.info
        )

    def write(self, draft: Draft) -> Written:
        drafter, info = family.drafter_of(draft.parts), draft.target.info
        ids, layers = drafter.vocabulary.target_ids, list(drafter.target_layers)
        ours: dict[str, Any] = {
            "architectures": [_ARCHITECTURE],
            "draft_vocab_size": info.vocab_size if ids is None else len(ids),
        }
        fresh = {
            **decoder_config(drafter.config, info, num_layers=1),
            "norm_before_residual": False,
            "eagle_config": {_IDS: layers, "use_aux_hidden_state": True},
            _IDS: [layer + 1 for layer in layers],
            "target_hidden_size": info.hidden_size,
        }
        tensors = TABLE.to_foreign(draft.weights())
        tensors["lm_head.weight"] = drafter.vocabulary.weight
        if ids is not None:
            tensors["t2d"] = membership(ids, info.vocab_size)
        return Written(kept_config(draft, fresh, ours), tensors)

    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        length, drafter = layout.strategy.draft_length, layout.strategy.drafter.options
        taps = len(drafter.get("target_layers") or range(_TAPS))
        if taps != _TAPS:
            why = f"it takes {_TAPS} taps, and this drafter has {taps}"
            return EngineVerdict("vllm", loads=False, why=why), EngineVerdict("sglang", loads=False, why=why)
        if "norm_before_residual" in header.config:
            vllm = EngineVerdict("vllm", loads=True, command=vllm_command("eagle3", length))
        else:
            why = "it takes norm_before_residual for true where config.json does not say; write false there"
            vllm = EngineVerdict("vllm", loads=False, why=why)
        if drafter["norm_before_residual"]:
            why = "its residual stream is the feature itself, and this drafter's the feature behind its norm"
            return vllm, EngineVerdict("sglang", loads=False, why=why)
        chain = (f"--speculative-num-steps {length}", "--speculative-eagle-topk 1")
        command = sglang_command("EAGLE3", length, *chain)
        return vllm, EngineVerdict("sglang", loads=True, command=command)


def _layer_ids(config: Mapping[str, Any], where: str) -> list[int] | None:
    """Decoder layers from 0; raises ConfigError where the two places do not differ by the one they should."""
    nested = (config.get("eagle_config") or {}).get(_IDS)
    top = config.get(_IDS)
    if nested is not None and top is not None and [i + 1 for i in nested] != list(top):
        raise ConfigError(
            f"{where}: {_IDS} is {list(nested)} in eagle_config, which counts from 0, and {list(top)} at "
            "the top, "
            "which counts from 1; the two name other layers"
        )
    if nested is not None:
        return check_layers(where, nested, None)
    return None if top is None else check_layers(where, top, None, shift=1)
