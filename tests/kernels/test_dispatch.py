"""Which implementation verifies: by device and type, as the environment says, and never silently another."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import deepspec.kernels as kernels
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.kernels import CHECK_VARIABLE, KERNELS_VARIABLE, backend_for
from tests.exact_statistics.compositions import build, tiny_target

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KERNELS_VARIABLE, CHECK_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_the_reference_serves_the_cpu_and_triton_a_gpu() -> None:
    assert backend_for(CPU).name == "reference"
    assert backend_for(torch.device("mps")).name == "reference"
    assert backend_for(CUDA, torch.bfloat16).name.startswith("triton")
    assert backend_for(CUDA, torch.float64).name == "reference"


def test_without_triton_a_gpu_has_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_is_installed", lambda: False)
    assert backend_for(CUDA, torch.bfloat16).name == "reference"
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    with pytest.raises(ConfigError, match="=triton cannot run here: triton is not installed"):
        backend_for(CUDA, torch.bfloat16)


def test_the_environment_forces_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "reference")
    assert backend_for(CUDA, torch.bfloat16).name == "reference"
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for(CPU).name == "triton (interpreted)"


@pytest.mark.parametrize(
    ("value", "device", "dtype", "complaint"),
    [
        ("trition", CPU, torch.float32, "'trition'; allowed are reference and triton"),
        ("triton", CPU, torch.float32, "CPU tensors need Triton's interpreter"),
        ("triton", CUDA, torch.float64, "the rows are torch.float64"),
        ("triton", torch.device("mps"), torch.float32, "nothing for device mps"),
    ],
)
def test_what_cannot_run_is_said_in_one_line(
    value: str, device: torch.device, dtype: torch.dtype, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv(KERNELS_VARIABLE, value)
    with pytest.raises(ConfigError, match=complaint) as raised:
        backend_for(device, dtype)
    assert "\n" not in str(raised.value)


def test_importing_the_package_imports_no_triton() -> None:
    code = "import sys, deepspec.kernels; print('triton' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


@pytest.mark.parametrize("verifier", ["token", "block", "delta"])
@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
def test_the_engine_decodes_the_same_with_either(verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(12, torch.float32)

    def decoded() -> list[tuple[int, ...]]:
        parts = build(target.info, "dspark", 2, torch.float32, policy="threshold", verifier=verifier)
        engine = Engine(target, parts, seed=3)
        done = engine.run([[1, 2], [3]], SamplingParams(max_tokens=6, ignore_stop=True))
        return [one.tokens for one in done]

    by_reference = decoded()
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    assert decoded() == by_reference
