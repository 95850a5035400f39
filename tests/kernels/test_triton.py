"""The Triton kernels decide as the float64 reference: in the interpreter, or compiled where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import triton_philox, triton_rules
from deepspec.kernels.triton_rules import Workspace
from deepspec.sampling import SamplingParams, Stream, batch_sampling, categorical, uniforms
from deepspec.types import Draft, Sampling, TargetRows, Verdict
from tests.kernels import rounds
from tests.kernels.rounds import DEVICE, Round, make_round

# NumPy computes both branches of a choice, and warns of the one that is not taken.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning:triton.runtime.interpreter"
)

#: float32 exponentials and sums of at most 64 terms are off by about 1e-6; exactness asks for 1e-5 or less.
MARGIN = 2e-6
#: Drafted tokens, vocabulary, block: one block, several, one that is not filled, one token.
SIZES = ((0, 7, 4), (1, 1, 16), (1, 33, 64), (1, 17, 16), (2, 12, 16), (2, 24, 32), (3, 64, 64))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT: dict[str, Callable[[Round], tuple[Verdict, Tensor]]] = {
    "token": rounds.token_rule,
    "block": rounds.block_rule,
    "delta": rounds.delta_rule,
}


def placed(given: Round) -> Round:
    """The round on the device of these tests."""

    def move(value: object) -> object:
        if isinstance(value, Tensor):
            return value.to(DEVICE)
        if isinstance(value, TargetRows | Draft | Sampling):
            return replace(value, **{name: move(field) for name, field in vars(value).items()})
        return value

    return Round(**{name: move(field) for name, field in vars(given).items()})


def decide(rule: str, given: Round, block: int) -> tuple[list[int], list[int]]:
    """Accepted counts and closing tokens of a kernel whose workspace was poisoned first."""
    here = placed(given)
    num, num_draft = here.draft.tokens.shape
    workspace = Workspace.allocate(num, num_draft, here.target.logits.shape[1], DEVICE, block=block)
    workspace.poison()
    noise = (here.noise,) if rule == "delta" else (here.accept, here.residual)
    run = getattr(triton_rules, f"{rule}_rule")
    verdict = run(here.target, here.draft, here.lengths, *noise, workspace=workspace, block=block)
    return verdict.accepted.tolist(), verdict.bonus.tolist()


@dataclass
class Tally:
    requests: int = 0
    excused: int = 0

    def compare(self, rule: str, given: Round, block: int, *, truncated: bool = False) -> None:
        """Every request that is not within the margin of another decision has the reference's."""
        exact = given.exact()
        expected, margin = EXACT[rule](exact)
        if truncated:
            margin = torch.minimum(margin, rounds.cut_margin(exact))
        found = decide(rule, given, block)
        for r, near in enumerate((margin < MARGIN).tolist()):
            self.requests += 1
            self.excused += near
            if not near:
                pair = (int(expected.accepted[r]), int(expected.bonus[r]))
                assert (found[0][r], found[1][r]) == pair, (rule, r, margin[r])


def test_decisions_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = Tally()

    @settings(phases=[Phase.generate])  # a smaller seed is no simpler round
    @given(st.integers(0, 2**30), st.sampled_from(SIZES), st.sampled_from(DTYPES), st.booleans())
    def holds(seed: int, sizes: tuple[int, int, int], dtype: torch.dtype, one_hot: bool) -> None:
        num_draft, vocab, block = sizes
        monkeypatch.setattr(categorical, "BLOCK", block)
        made = make_round(seed, num_draft=num_draft, vocab=vocab, dtype=dtype, one_hot=one_hot)
        for rule in EXACT:
            tally.compare(rule, made, block)

    holds()
    assert tally.requests >= 2000
    assert tally.excused <= 0.001 * tally.requests, tally


@pytest.mark.parametrize(("rule", "dtype"), list(zip(EXACT, DTYPES, strict=True)))
def test_truncation_of_some_requests_is_the_references(
    rule: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(categorical, "BLOCK", 16)
    tally = Tally()
    for seed in range(2):
        made = make_round(seed, num_draft=1, vocab=19, dtype=dtype, num=28, truncate=True)
        tally.compare(rule, made, 16, truncated=True)
    assert tally.excused == 0
