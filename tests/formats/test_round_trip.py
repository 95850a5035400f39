"""Every layout, read and written again in the same layout: the same bytes, and the same fields."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepspec.formats.export import export
from deepspec.formats.opened import open_draft
from deepspec.target import Target
from tests.formats import foreign as f
from tests.formats.test_golden import BLOCKS, CHAINS

CASES = {
    **{f"block-{name}": case for name, case in BLOCKS.items()},
    **{f"eagle3-{name}": case for name, case in CHAINS.items()},
}
PROJECT = {"zlab": "sglang"}


@pytest.fixture(scope="module")
def targets() -> dict[bool, Target]:
    """By whether it is Gemma's."""
    return {False: f.tiny_target(), True: f.tiny_target("gemma3")}


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_written_again_is_the_same(name, targets, tmp_path):
    case = CASES[name]
    target = targets[case.shape.is_gemma]
    torch.manual_seed(1)
    folder = case.write(tmp_path / "theirs", target)
    halved(folder)
    project = name.split("-")[1]
    subject = open_draft(str(folder), target=target, dtype=torch.float32)
    written = export(subject, PROJECT.get(project, project), tmp_path / "ours")
    before, after = (load_file(place / "model.safetensors") for place in (folder, written.folder))
    assert before.keys() == after.keys()
    for tensor in before:
        assert before[tensor].dtype == after[tensor].dtype, tensor
        assert torch.equal(before[tensor], after[tensor]), tensor
    theirs, ours = (json.loads((place / "config.json").read_text()) for place in (folder, written.folder))
    assert {key: ours[key] for key in theirs} == theirs
    assert open_draft(str(written.folder), target=target).parts.strategy == subject.parts.strategy


def halved(folder: Path) -> None:
    """Store the matrices in bfloat16, as releases do, and the norms in float32."""
    found = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.bfloat16() if tensor.ndim == 2 else tensor for name, tensor in found.items()},
        folder / "model.safetensors",
    )
