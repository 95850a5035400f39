"""Where a draft model comes from: a name, a configuration, or the target's sizes. All are checked here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from deepspec.errors import ConfigError
from deepspec.interfaces import TargetInfo
from deepspec.target import ModelSource, PackedDecoder

logger = logging.getLogger(__name__)

#: The share of the target's tokens that a draft model's tokenizer may lack: a few that were added later.
_MAY_LACK = 0.01
_REMEDY = "give drafter.model a model with the target's tokenizer"


def named_model(name: str, revision: str | None, info: TargetInfo) -> PackedDecoder:
    """The pretrained model called ``name``; raises TargetError, and ConfigError for another tokenizer."""
    source = ModelSource(
        what="draft model",
        name=name,
        revision=revision,
        revision_key="drafter.revision",
        own_code="a draft model's own code is never run: choose one that transformers has the code of",
        too_big="take a smaller one",
    )
    if info.vocabulary is not None:
        check_tokenizer(name, source.load_tokenizer().get_vocab(), info.vocabulary())
    decoder = source.attempt(lambda: PackedDecoder(source.load_model("auto"), name=f"draft model {name!r}"))
    source.attempt(decoder.check_readout)
    positions = getattr(decoder.config, "max_position_embeddings", info.max_positions)
    if positions < info.max_positions:
        logger.warning(
            "draft model %r was made for texts of %d tokens, the target for %d: past that it drafts poorly",
            name,
            positions,
            info.max_positions,
        )
    return decoder


def configured_model(architecture: Mapping[str, Any]) -> PackedDecoder:
    """A model with new weights, by its configuration as transformers writes it; raises ConfigError."""
    try:
        decoder = PackedDecoder.configured(architecture, name="drafter.architecture")
        decoder.check_readout()  # sizes that do not fit each other show in a forward alone
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(
            "drafter.architecture is no causal language model's configuration, as in its config.json: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return decoder


@torch.no_grad()
def small_model(info: TargetInfo, num_layers: int) -> PackedDecoder:
    """A Qwen3 of the target's sizes and ``num_layers`` layers that starts from its embedding and LM head.

    The two are not tied, and both are trained: on the demo target tied or frozen ones did worse.
    """
    config = Qwen3Config(
        vocab_size=info.vocab_size,
        hidden_size=info.hidden_size,
        intermediate_size=info.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=info.num_heads,
        num_key_value_heads=info.num_kv_heads,
        head_dim=info.head_dim,
        max_position_embeddings=info.max_positions,
        rms_norm_eps=info.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": info.rope.theta},
        tie_word_embeddings=False,
    )
    model: PreTrainedModel = Qwen3ForCausalLM(config)
    model.get_input_embeddings().weight.copy_(info.embedding * info.embedding_scale)
    model.get_output_embeddings().weight.copy_(info.lm_head)
    return PackedDecoder(model, name="draft model")


def check_tokenizer(name: str, own: Mapping[str, int], target: Mapping[str, int]) -> None:
    """Refuse a tokenizer that gives an id another meaning than the target's, or lacks many of its tokens.

    Raises:
        ConfigError: with the first id that differs.
    """
    tokens = {number: token for token, number in own.items()}
    problem = f"draft model {name!r} has another tokenizer than the target, or none"
    lacking = 0
    for token, number in sorted(target.items(), key=lambda item: item[1]):
        here, there = tokens.get(number), own.get(token)
        if here is None and there is None:
            lacking += 1
        elif here != token:
            mine = "nothing" if here is None else repr(here)
            raise ConfigError(
                f"{problem}: id {number} is {token!r} in the target's and {mine} in its own; {_REMEDY}"
            )
    if lacking > _MAY_LACK * len(target):
        raise ConfigError(f"{problem}: it lacks {lacking} of the target's {len(target)} tokens; {_REMEDY}")
