"""Making a target of a model: what its attention does without a fused kernel is said."""

from __future__ import annotations

import logging

import pytest
import torch

from deepspec.errors import ConfigError
from deepspec.target import make_target
from tests.tiny_models import make
from tests.tiny_tokenizer import tokenizer


def test_attention_without_a_fused_kernel_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="deepspec")
    make_target(make("qwen3"))
    assert caplog.messages == []
    make_target(make("gemma3", attn_logit_softcapping=20.0), name="capped")
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "capped has attention with a soft-cap"
    ]


def test_attention_with_sinks_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="deepspec")
    model = make("qwen3")
    for layer in model.get_decoder().layers:
        layer.self_attn.sinks = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    make_target(model, name="sunk")
    (message,) = caplog.messages
    assert "sunk has attention with sinks" in message


def test_drafters_may_read_the_targets_vocabulary() -> None:
    model = make("qwen3", vocab_size=260)
    vocabulary = make_target(model, tokenizer()).info.vocabulary
    assert vocabulary is not None
    assert vocabulary()["<end>"] == 256
    assert make_target(model).info.vocabulary is None


def test_the_last_layer_cannot_be_tapped() -> None:
    with pytest.raises(ConfigError, match="never the last"):
        make_target(make("qwen3")).check_layers((3,))
