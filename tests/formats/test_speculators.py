"""Exports in speculators' layout load in the real ``speculators``, whose draft logits equal ours.

It lives in an environment of its own: ``make speculators`` builds it and runs this; elsewhere
``DEEPSPEC_SPECULATORS_PYTHON`` names its Python.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.composed import Composed
from deepspec.config import RunConfig
from deepspec.formats.export import export
from deepspec.strategy import Strategy
from deepspec.target import load_target
from deepspec.train.assemble import assemble
from tests.formats.foreign import MASK, H
from tests.formats.ours import CONTEXT, G, drafted
from tests.tiny_runs import VOCAB, save_target

CLIENT = Path(__file__).with_name("speculators_client.py")
PYTHON = os.environ.get("DEEPSPEC_SPECULATORS_PYTHON")
SHALLOW = {"num_layers": 2, "target_layers": [0, 2], "mask_token_id": MASK}
STRATEGIES = {
    "dspark-vanilla": ("dspark", SHALLOW, {"rank": 5}),
    "dspark-gated": ("dspark", SHALLOW, {"type": "gated", "rank": 5}),
    "dspark-rnn": ("dspark", {**SHALLOW, "draft_vocab_size": 50}, {"type": "rnn", "rank": 5}),
    "dflash": ("dflash", {**SHALLOW, "sample_from_anchor": False}, {}),
    "dflash-reduced": ("dflash", {**SHALLOW, "draft_vocab_size": 50}, {}),
    "eagle3": ("eagle3", {"target_layers": [0, 1, 2]}, {}),
    "eagle3-own": ("eagle3", {"own_head": True, "draft_vocab_size": 50, "target_layers": [0, 2]}, {}),
    "eagle3-norms": ("eagle3", {"layer": "llama", "feature_norm": "joint", "norm_before_residual": True}, {}),
    "mtp": ("mtp", {}, {}),
    "eagle3-output": ("eagle3", {"feature_norm": "each", "feed_back": "post_norm", "num_layers": 2}, {}),
}


def random_parts(name: str, target):
    """A drafter whose every weight is random, also those that begin at nothing."""
    base, drafter, head = STRATEGIES[name]
    strategy = Strategy.named(base).replace(draft_length=G, drafter=drafter, head=head)
    parts = assemble(strategy, target, device=target.device, dtype=torch.float32, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in parts.modules().parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.2
        parameter.data.copy_(noise + (1.0 if parameter.ndim == 1 else 0.0))
    if parts.drafter.vocabulary.target_ids is not None:
        ids = torch.randperm(VOCAB, generator=generator)[:50].sort().values
        parts.drafter.vocabulary.target_ids.copy_(ids)
        parts.drafter.vocabulary.cut_rows()
    return parts


@pytest.mark.skipif(PYTHON is None, reason="no environment with speculators is named (make speculators)")
def test_speculators_loads_exports_and_computes_the_same_logits(tmp_path):
    config = RunConfig.model_validate(
        {
            "strategy": Strategy.named("dspark").model_dump(),
            "target": {"name": str(save_target(tmp_path / "t"))},
        }
    )
    target = load_target(config.target, device="cpu")
    work = tmp_path / "work"
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, VOCAB, (CONTEXT + 1 + 2 * G + 4,), generator=generator)
    inputs = {f"features_{k}": torch.randn(len(tokens), k * H, generator=generator) for k in (1, 2, 3)}
    ours = {}
    for name in STRATEGIES:
        parts = random_parts(name, target)
        export(Composed(config, target, parts), "speculators", work / name)
        features = inputs[f"features_{len(parts.drafter.target_layers) or 1}"]
        ours[name], _ = drafted(parts, tokens[: CONTEXT + 1 + G], features[:CONTEXT])
    save_file({"tokens": tokens, **inputs}, work / "inputs.safetensors")
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")
    }
    subprocess.run([str(PYTHON), CLIENT, work], check=True, env=environment)
    theirs = load_file(work / "outputs.safetensors")
    assert theirs.keys() == ours.keys()
    for found in (ours, theirs):
        found["mtp"] = found["mtp"][:1]  # later steps are those of its training, which attend otherwise
    for name, logits in ours.items():
        torch.testing.assert_close(
            theirs[name], logits, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
