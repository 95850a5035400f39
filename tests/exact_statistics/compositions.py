"""Every composition of the registered strategies, policies and verifiers over one tiny random target."""

from __future__ import annotations

import os
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepspec.interfaces import TargetInfo
from deepspec.plugins import create_plugin_manager, list_parts, list_strategies
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target, make_target
from tests.tiny_models import make

#: ``make test-all`` sets it: the sizes that the project promises instead of those that suit every day.
THOROUGH = os.environ.get("DEEPSPEC_THOROUGH") == "1"
#: A made-up curve under which a scheduler has to choose, a few requests at a time.
CURVE = Path(__file__).with_name("curve.json")
_MANAGER = create_plugin_manager()
STRATEGIES = sorted(list_strategies(_MANAGER))


def names(kind: str) -> list[str]:
    """The registered parts of a kind."""
    found = []
    for part in list_parts(_MANAGER):
        cls: Any = pkgutil.resolve_name(part.source) if isinstance(part.source, str) else part.source
        found += [part.name] * (cls.kind == kind)
    return sorted(found)


HEADS, CALIBRATORS = names("head"), names("calibrator")
POLICIES, VERIFIERS = names("policy"), names("verifier")


def tiny_target(vocab_size: int, dtype: torch.dtype = torch.float64, **changes: object) -> Target:
    """A random target of two narrow layers whose last token id is free for masks."""
    shape: dict[str, object] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    plain = make_target(make("qwen3", dtype, vocab_size=vocab_size, **{**shape, **changes}))
    return replace(plain, info=replace(plain.info, mask_token_id=vocab_size - 1))


def build(info: TargetInfo, name: str, draft_length: int, dtype: torch.dtype, **parts: Any) -> Parts:
    """A registered strategy for ``info`` with random weights, none of them zero."""
    if parts.get("policy") in ("prefix", "topk", "cliff", "frugal"):
        parts["policy"] = {"type": parts["policy"], "curve": str(CURVE)}
    changes = {"head": {"confidence": "linear"}, **parts}
    strategy = Strategy.named(name, _MANAGER).replace(draft_length=draft_length, **changes)
    torch.manual_seed(1)
    built = strategy.build(info, manager=_MANAGER)
    for weight in built.head.parameters():
        nn.init.normal_(weight, std=0.3)
    if dtype != torch.float32:  # what they are made in; torch refuses to convert fake weights
        built.modules().to(dtype)
    built.modules().eval()
    return built
