"""Every kernel compiles for GPUs that are not there, with wide loads, no spills and few registers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.ahead_of_time import MODULES, ROWS

ROOT = Path(__file__).parents[2]
THOROUGH = os.environ.get("DEEPSPEC_THOROUGH") == "1"
#: 8 warps at 128 registers leave room for two programs on an SM of 65,536 registers.
REGISTERS = 128
#: What each kernel reads row by row, and the choices that its rules make at compile time.
STREAMING = {
    "block_stats": [{}],
    "cut_offs": [{}],
    "residual_masses": [{}, {"one_hot": True}, {"blockwise": True}, {"blockwise": True, "whole_round": True}],
    "closing_token": [{}, {"one_hot": True}, {"blockwise": True}, {"blockwise": True, "one_hot": True}],
    "draw_rows": [{}],
    "correct_rows": [{"tile": 128}],
    "draw_stored": [{}, {"tiles": 1}],
    "loss_normaliser": [{}],
    "loss_statistics": [{}, {"has_target": False}],
    "loss_gradient": [{}, {"has_dense": False, "has_tanh": False}, {"has_target": False, "has_dense": False}],
}
#: Loads of one value that a row's kernel makes besides: the label's logit, the drawn token's.
SINGLE = {"loss_statistics": 1, "draw_stored": 1}
#: A product of 64 rows and 128 tokens holds its sums in registers, one program on an SM.
MORE_REGISTERS = {"correct_rows": 192}
SMALL = {
    "accept_drafts": [{}, {"blockwise": True}],
    "accept_block": [{}],
    "match_draws": [{}],
    "draw_pairs": [{"block": 128}],
    "order_pairs": [{"tile": 256, "bits": 12}],
    "first_losses": [{"bits": 12}],
    "count_admitted": [{"rows": 64, "tile": 256}],
}
Job = tuple[str, str, dict[str, int], int]


def jobs() -> list[Job]:
    """Kernel, dtype, choices, architecture; every day one of each kernel and rule, for one GPU each."""
    choices = {**STREAMING, **SMALL}
    if THOROUGH:
        return [
            (name, dtype, {**choice, **truncated}, capability)
            for name in choices
            for choice in choices[name]
            for truncated in _truncations(name)
            for dtype in _dtypes(name, choice)
            for capability in (80, 90, 100)
        ]
    turns = itertools.cycle([("bf16", 90), ("fp32", 80), ("fp16", 100), ("fp32", 90), ("bf16", 80)])
    return [
        (name, *dtype_first(turn, choice))
        for name in choices
        for choice, turn in zip(choices[name], turns, strict=False)
    ]


def _arguments(name: str) -> list[str]:
    found: list[str] = next(getattr(module, name) for module in MODULES if hasattr(module, name)).arg_names
    return found


def _truncations(name: str) -> list[dict[str, Any]]:
    """Both, where a kernel is told: else the same code would be compiled twice."""
    return [{"truncated": False}, {"truncated": True}] if "truncated" in _arguments(name) else [{}]


def _dtypes(name: str, choice: dict[str, Any]) -> tuple[str, ...]:
    """All, where a kernel reads rows or goes by their bits."""
    arguments = _arguments(name)
    reads = any(row in arguments for row in ROWS) or ("bits" in arguments and "bits" not in choice)
    return ("bf16", "fp16", "fp32") if reads else ("fp32",)


def dtype_first(turn: tuple[str, int], choice: dict[str, int]) -> tuple[str, dict[str, int], int]:
    return turn[0], {**choice, "truncated": turn[0] == "fp32"}, turn[1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("ahead_of_time.py")
    ran = subprocess.run(
        [sys.executable, str(script), json.dumps(jobs())],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_every_kernel_and_rule_compiles(compiled: list[dict[str, Any]]) -> None:
    assert [(row["kernel"], row["dtype"], row["changes"], row["capability"]) for row in compiled] == jobs()
    targets = {row["capability"]: row["target"] for row in compiled}
    assert targets == {80: "sm_80", 90: "sm_90a", 100: "sm_100a"}


def test_rows_are_loaded_128_bits_at_a_time(compiled: list[dict[str, Any]]) -> None:
    for row in compiled:
        if row["kernel"] in STREAMING:
            assert row["loads_128"] > 0, row
            assert row["loads_16"] <= SINGLE.get(row["kernel"], 0), row


def test_nothing_spills_and_registers_are_few(compiled: list[dict[str, Any]]) -> None:
    for row in compiled:
        assert row["spills"] == 0, row
        assert row["registers"] <= MORE_REGISTERS.get(row["kernel"], REGISTERS), row


def test_products_and_sums_are_not_fused(compiled: list[dict[str, Any]]) -> None:
    assert {row["fused"] for row in compiled} == {False}
