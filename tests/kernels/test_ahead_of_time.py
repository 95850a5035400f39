"""Every kernel compiles for GPUs that are not here: wide loads, no spills, registers under a ceiling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.exact_statistics.compositions import THOROUGH

ROOT = Path(__file__).parents[2]
#: bfloat16 on Hopper on every run; every type on Ampere and Blackwell, too, on thorough ones.
DTYPES = ("bf16", "fp16", "fp32") if THOROUGH else ("bf16",)
CAPABILITIES = (80, 90, 100) if THOROUGH else (90,)
TARGETS = {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}
#: Each kernel with the constants that its rules give it.
STREAMING: list[tuple[str, dict[str, Any]]] = [
    ("block_stats", {}),
    ("block_stats", {"truncated": True}),
    ("cut_offs", {}),
    ("residual_masses", {}),
    ("residual_masses", {"blockwise": True, "whole_round": True}),
    ("residual_masses", {"truncated": True, "one_hot": True}),
    ("closing_token", {}),
    ("closing_token", {"blockwise": True, "truncated": True}),
    ("draw_rows", {}),
    ("draw_drafts", {}),
]
DECIDING: list[tuple[str, dict[str, Any]]] = [
    ("accept_drafts", {}),
    ("accept_drafts", {"blockwise": True, "truncated": True}),
    ("accept_block", {}),
    ("match_draws", {}),
]
#: 65,536 registers an SM; 8 warps of 96 leave room for two programs, of 128 for two as well.
MOST_REGISTERS = 128


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    wanted = [
        [name, dtype, changes, capability]
        for capability in CAPABILITIES
        for name, changes in [*STREAMING, *DECIDING]
        for dtype in DTYPES
    ]
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    script = str(ROOT / "tests" / "kernels" / "ahead_of_time.py")
    ran = subprocess.run(
        [sys.executable, script, json.dumps(wanted)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [[one[key] for key in ("kernel", "dtype", "changes", "capability")] for one in found] == wanted
    return found


def test_all_are_made_for_the_architecture_that_was_asked_for(compiled: list[dict[str, Any]]) -> None:
    assert {(one["capability"], one["target"]) for one in compiled} == {
        (capability, TARGETS[capability]) for capability in CAPABILITIES
    }


def test_nothing_is_spilled_and_registers_stay_under_the_ceiling(compiled: list[dict[str, Any]]) -> None:
    wrong = [one for one in compiled if one["spills"] or one["registers"] > MOST_REGISTERS]
    assert not wrong


def test_rows_are_read_sixteen_bytes_at_a_time(compiled: list[dict[str, Any]]) -> None:
    streaming = {name for name, _ in STREAMING}
    for one in compiled:
        if one["kernel"] in streaming:
            assert one["loads_128"] > 0, one
            assert one["loads_16"] == 0, one


def test_a_row_that_is_not_aligned_would_show(tmp_path: Path) -> None:
    """The same kernel at a row stride that 16 does not divide falls back to narrow loads."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    code = (
        "import json; from deepspec.kernels import triton_rows; from tests.kernels import ahead_of_time; "
        "ahead_of_time.ALIGNED = (); "
        "print(json.dumps(ahead_of_time.compile_one(triton_rows.block_stats, 'bf16', {}, 90)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout)["loads_128"] == 0
