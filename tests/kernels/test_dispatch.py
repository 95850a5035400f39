"""Which kernel runs is chosen in one place, can be forced, and is said; what cannot run is one clear line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

import deepspec.kernels as kernels
from deepspec.engine import Engine, SamplingParams
from deepspec.errors import ConfigError
from deepspec.kernels import CHECK_VARIABLE, KERNELS_VARIABLE, VerifyBackend, backend_for
from tests.exact_statistics.compositions import build, tiny_target
from tests.kernels.rounds import Round, make_round

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KERNELS_VARIABLE, raising=False)
    monkeypatch.delenv(CHECK_VARIABLE, raising=False)


def test_the_cpu_takes_the_reference_and_other_devices_triton() -> None:
    assert backend_for(CPU).name == "reference"
    assert backend_for(torch.device("mps")).name == "reference"
    for other in ("cuda", "cuda:1", "xpu"):
        assert backend_for(torch.device(other)).name.startswith("triton")


def test_float64_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend_for(CUDA, torch.float64).name == "reference"
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    with pytest.raises(ConfigError, match=r"=triton cannot run here: the rows are torch\.float64"):
        backend_for(CUDA, torch.float64)


def test_a_device_without_triton_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert backend_for(CUDA).name == "reference"
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    with pytest.raises(ConfigError, match="cannot run here: triton is not installed"):
        backend_for(CUDA)


def test_either_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "reference")
    assert backend_for(CUDA).name == "reference"
    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for(CPU).name.startswith("triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ConfigError, match="CPU tensors need Triton's interpreter"):
        backend_for(CPU)
    with pytest.raises(ConfigError, match="nothing for device mps"):
        backend_for(torch.device("mps"))


def test_another_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "cuda")
    with pytest.raises(ConfigError, match="DEEPSPEC_KERNELS is 'cuda'; allowed are reference and triton"):
        backend_for(CPU)


def test_doctor_reports_a_kernel_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspec.doctor import diagnose

    monkeypatch.setenv(KERNELS_VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = diagnose()
    assert found.kernel_backend["cpu"] == "none"
    assert any("DEEPSPEC_KERNELS=triton cannot run here" in problem for problem in found.problems)
    assert found.environment[KERNELS_VARIABLE] == "triton"


def test_triton_is_imported_when_it_is_going_to_run_and_not_before() -> None:
    code = (
        "import sys, torch, deepspec.verifiers.token, deepspec.kernels as k; "
        "k.backend_for(torch.device('cpu')); "
        "assert 'deepspec.kernels.triton_rules' not in sys.modules; "
        "assert 'triton.language' not in sys.modules; "
        "k.backend_for(torch.device('cuda')); assert 'triton.language' in sys.modules"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.filterwarnings("ignore:(invalid|divide|overflow).*encountered:RuntimeWarning:triton")
def test_an_engine_says_the_same_with_either(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny_target(12, torch.float32)
    outputs = []
    for name in ("reference", "triton"):
        monkeypatch.setenv(KERNELS_VARIABLE, name)
        for verifier in ("token", "delta"):
            parts = build(target.info, "dspark", 2, torch.float32, verifier={"type": verifier})
            engine = Engine(target, parts, max_positions=64)
            params = [SamplingParams(seed=i, max_tokens=4, top_k=5 * i) for i in range(2)]
            outputs.append([c.tokens for c in engine.run([[1, 2, 3], [4]], params)])
    assert outputs[:2] == outputs[2:]


def _spoil(change: Callable[[Round], Round]) -> Callable[[], Round]:
    return lambda: change(make_round(2, num_draft=2, vocab=9, dtype=torch.float32, num=4))


def _with_length(given: Round, length: int) -> Round:
    lengths = given.lengths.clone()
    lengths[1] = length
    return replace(given, lengths=lengths)


def _with_token(given: Round, token: int) -> Round:
    tokens = given.draft.tokens.clone()
    tokens[:, 0] = token
    full = torch.tensor([0, 2, 2, 2])
    starts = (full + 1).cumsum(0) - full - 1
    rows = torch.zeros(int((full + 1).sum()), 9)
    return replace(
        given,
        lengths=full,
        target=replace(given.target, starts=starts, logits=rows),
        draft=replace(given.draft, tokens=tokens),
    )


def _with_target(given: Round, value: float) -> Round:
    logits = given.target.logits.clone()
    logits[int(given.target.starts[3])] = value
    return replace(given, target=replace(given.target, logits=logits))


def _with_draft(given: Round) -> Round:
    whole = _with_token(given, 0)
    logits = given.draft.logits.clone()
    logits[2, 1, 4] = float("nan")
    logits[0] = float("nan")  # not read: request 0 verifies nothing
    return replace(whole, draft=replace(whole.draft, logits=logits))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: _with_length(g, 3), r"request 1 has length 3; allowed are 0\.\.2, what was drafted"),
        (lambda g: _with_length(g, -1), r"request 1 has length -1; allowed are 0\.\.2"),
        (
            lambda g: replace(g, target=replace(g.target, starts=g.target.starts * 0)),
            r"request 0 has length \d and rows 0\.\.-1 of \d+; it needs one row more",
        ),
        (lambda g: _with_token(g, 9), r"request 1 drafted token 9 at position 0; allowed are 0\.\.8"),
        (lambda g: _with_token(g, -1), "request 1 drafted token -1 at position 0"),
        (lambda g: _with_target(g, float("nan")), "the target logits of request 3, row 0, hold NaN"),
        (lambda g: _with_target(g, float("-inf")), "the target logits of request 3, row 0, hold nothing"),
        (_with_draft, "the draft logits of request 2, row 1, hold NaN"),
        (lambda g: replace(g, lengths=g.lengths[:2]), r"lengths is \[2\]; .* ask for \[4\]"),
        (
            lambda g: replace(g, lengths=g.lengths.to("meta")),
            "tensors on several devices: target.logits on cpu, .*lengths on meta",
        ),
    ],
)  # fmt: skip
def test_debug_mode_says_what_is_wrong_with_a_round(
    spoil: Callable[[Round], Round], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _spoil(spoil)()
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    backend: VerifyBackend = backend_for(CPU)
    for run, noise in (
        (backend.token_rule, (given.accept, given.residual)),
        (backend.delta_rule, (given.noise,)),
    ):
        with pytest.raises(ConfigError, match=message):
            run(given.target, given.draft, given.lengths, *noise)


def test_debug_mode_passes_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    given = make_round(2, num_draft=2, vocab=9, dtype=torch.float32, num=14)
    plain = backend_for(CPU).token_rule(
        given.target, given.draft, given.lengths, given.accept, given.residual
    )
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    checked = backend_for(CPU).token_rule
    found = checked(given.target, given.draft, given.lengths, given.accept, given.residual)
    assert torch.equal(found.accepted, plain.accepted)
    assert torch.equal(found.bonus, plain.bonus)
