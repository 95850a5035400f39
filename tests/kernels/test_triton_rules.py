"""The Triton rules decide as the float64 reference does, in the interpreter or on a GPU, in every regime."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspec.errors import ConfigError
from deepspec.kernels import triton_rules
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.types import Draft, TargetRows
from tests.exact_statistics.compositions import THOROUGH
from tests.kernels.rounds import BLOCK, DEVICE, RULES, Round, Shape, by_kernels, differing, random_round

# The interpreter computes both sides of a tl.where with numpy, which warns of the one that is not taken.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero) encountered:RuntimeWarning")
#: Of all requests that the random rounds hold, how many may differ within the margin.
EXCUSED = 1e-3
TRUNCATED = ({"top_k": 5}, {"temperature": 0.7, "top_p": 0.8}, {}, {"min_p": 0.2, "top_p": 0.9, "top_k": 9})
#: Over two thousand requests in two rounds of each under each rule.
REGIMES = {
    "ragged": Shape(),
    "bfloat16": Shape(dtype=torch.bfloat16, vocab=32),
    "float16, a row for each draft": Shape(dtype=torch.float16, packed=False),
    "close": Shape(likeness=0.2, vocab=33),
    "p = q": Shape(likeness=0.0),
    "gaps": Shape(missing=0.4),
    "one-hot": Shape(certain=True),
    "one block": Shape(num=80, vocab=13),
    "one request": Shape(num=1, num_draft=6, vocab=50),
    "plain": Shape(num=120, num_draft=0),
    "truncated": Shape(num=4, num_draft=1, vocab=20, params=TRUNCATED),
    "truncated bfloat16": Shape(num=4, num_draft=1, vocab=20, params=TRUNCATED, dtype=torch.bfloat16),
}
tally = {"requests": 0, "excused": 0}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=8 if THOROUGH else 2)
@given(seed=st.integers(0, 10**6))
def test_decisions_are_those_of_the_float64_reference(rule: str, regime: str, seed: int) -> None:
    given = random_round(REGIMES[regime], seed)
    different, wrong = differing(rule, given)
    assert not wrong, f"requests {wrong}"
    tally["requests"] += len(given.lengths)
    tally["excused"] += len(different)
    assert tally["excused"] <= max(1, EXCUSED * tally["requests"])


def alone(whole: Round, r: int) -> Round:
    """Request ``r`` of an unpacked round, by itself."""
    one, per = slice(r, r + 1), whole.draft.tokens.shape[1] + 1
    sampling = whole.target.sampling
    rows = TargetRows(
        whole.target.logits[r * per : (r + 1) * per],
        torch.zeros_like(whole.target.starts[one]),
        replace(sampling, temperature=sampling.temperature[one]),
    )
    draft = Draft(*(part[one] for part in (whole.draft.tokens, whole.draft.logits, *_sums(whole.draft))))
    return Round(rows, draft, *(part[one] for part in (whole.lengths, *_noise(whole))))


def _sums(draft: Draft) -> tuple[torch.Tensor, torch.Tensor]:
    return draft.log_sum_exp, draft.log_q


def _noise(whole: Round) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return whole.accept, whole.residual, whole.delta


@pytest.mark.parametrize("rule", RULES)
def test_a_request_alone_is_what_it_is_among_64_bit_for_bit(rule: str) -> None:
    whole = random_round(Shape(num=64, num_draft=1, likeness=0.3, packed=False), 0)
    spaces = {}
    for name, part in (("together", whole), *((r, alone(whole, r)) for r in range(0, 64, 9))):
        num, num_draft = part.draft.tokens.shape
        room = triton_rules.Workspace.allocate(num, num_draft, 27, DEVICE, block=BLOCK)
        decide = getattr(triton_rules, f"{rule}_rule")
        verdict = decide(
            part.target, part.draft, part.lengths, *part.uniforms(rule), workspace=room, block=BLOCK
        )
        spaces[name] = (verdict.accepted, verdict.bonus, room.totals.view(num, -1), room.peaks.view(num, -1))
    for r in range(0, 64, 9):
        live = 2 * (int(whole.lengths[r]) + 1)  # blocks of the rows that the request has
        for kind, (one, every) in enumerate(zip(spaces[r], spaces["together"], strict=True)):
            mine = one[0] if kind < 2 else one[0, :live]
            assert torch.equal(mine, every[r] if kind < 2 else every[r, :live])


def _exact(p: list[list[float]], q: list[list[float]], tokens: list[int]) -> tuple[TargetRows, Draft]:
    """Rows whose probabilities are powers of two, so that float32 computes with them exactly."""
    rows = torch.tensor(p, device=DEVICE).log2() * math.log(2)
    stored = (torch.tensor([q], device=DEVICE).log2() * math.log(2)).float()
    drafted = torch.tensor([tokens], device=DEVICE)
    log_q = stored.gather(-1, drafted[..., None])[..., 0]
    sampling = batch_sampling([SamplingParams()], len(p[0]), DEVICE)
    target = TargetRows(rows.float(), torch.zeros(1, dtype=torch.int64, device=DEVICE), sampling)
    return target, Draft(drafted, stored, torch.zeros_like(log_q), log_q)


@pytest.mark.parametrize(("u", "accepted"), [(0.5 - 1e-6, 1), (0.5 + 1e-6, 0), (0.0, 1), (1.0, 0)])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_draft_is_kept_just_below_the_ratio_of_p_and_q(rule: str, u: float, accepted: int) -> None:
    some = [0.25, 0.25, 0.5, 0.0]
    target, draft = _exact([some, some], [[0.5, 0.25, 0.25, 0.0]], [0])
    uniforms = (torch.tensor([[u]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    lengths = torch.ones(1, dtype=torch.int64)
    empty = torch.zeros(1, 2, 2, dtype=torch.float64)
    given = Round(target, draft, lengths.to(DEVICE), *(x.to(DEVICE) for x in (*uniforms, empty)))
    verdict = by_kernels(rule, given, block=2)
    assert int(verdict.accepted) == accepted
    assert int(verdict.bonus) == 2  # what p has more than q, and p's second half


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_draft_that_p_never_gives_is_refused_whatever_the_uniform(rule: str) -> None:
    target, draft = _exact([[0.0, 0.5, 0.5, 0.0]] * 2, [[0.5, 0.5, 0.0, 0.0]], [0])
    zero = [torch.zeros(size, dtype=torch.float64, device=DEVICE) for size in ((1, 1), (1, 2), (1, 2, 2))]
    given = Round(target, draft, torch.ones(1, dtype=torch.int64, device=DEVICE), *zero)
    verdict = by_kernels(rule, given, block=2)
    assert (int(verdict.accepted), int(verdict.bonus)) == (0, 2)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_read_or_written_outside_whatever_ids_and_lengths_say(rule: str) -> None:
    given = random_round(Shape(num=6, num_draft=2), 0)
    wild = torch.tensor([[-1, 10**12], [27, 3], [-(10**9), 5]], device=DEVICE).repeat(2, 1)
    lengths = torch.tensor([-5, 99, 2, 1, 2, 10**12], device=DEVICE)
    starts = torch.tensor([-7, 10**12, 0, 3, 10**6, 2], device=DEVICE)
    broken = replace(
        given,
        target=replace(given.target, starts=starts),
        draft=replace(given.draft, tokens=wild),
        lengths=lengths,
    )
    verdict = by_kernels(rule, broken)
    assert bool(((verdict.accepted >= 0) & (verdict.accepted <= 2)).all())
    assert bool(((verdict.bonus >= 0) & (verdict.bonus < 27)).all())


@pytest.mark.parametrize("rule", RULES)
def test_one_token_is_all_there_is_to_say(rule: str) -> None:
    given = random_round(Shape(num=3, vocab=1), 0)
    assert by_kernels(rule, given).bonus.tolist() == [0, 0, 0]


def test_a_residual_without_mass_gives_the_likeliest_token_of_p() -> None:
    p = [0.25, 0.75]
    rows = torch.tensor([p, p], device=DEVICE).log()
    stored = rows[None, :1].clone()
    tokens = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    zero = torch.zeros(1, 1, device=DEVICE)
    draft = Draft(tokens, stored, zero, zero)  # log q of 0 instead of log 1/4: refused, though p = q
    sampling = batch_sampling([SamplingParams()], 2, DEVICE)
    target = TargetRows(rows, tokens[0], sampling)
    noise = torch.full((1, 1), 0.5, dtype=torch.float64, device=DEVICE)
    pair = torch.zeros(1, 2, dtype=torch.float64, device=DEVICE)
    verdict = triton_rules.token_rule(target, draft, tokens[0] + 1, noise, pair, block=2)
    assert (int(verdict.accepted), int(verdict.bonus)) == (0, 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_vocabulary_of_a_large_model_goes_by_blocks_of_4096(rule: str) -> None:
    given = random_round(Shape(num=2, num_draft=1, vocab=151_936, params=({},), dtype=torch.bfloat16), 3)
    assert differing(rule, given, block=4096)[1] == []


def test_a_workspace_of_another_size_is_refused() -> None:
    given = random_round(Shape(num=2), 0)
    room = triton_rules.Workspace.allocate(2, 3, 27, DEVICE, block=BLOCK)
    with pytest.raises(ConfigError, match="a workspace of 2 requests, 8 rows"):
        triton_rules.delta_rule(
            given.target, given.draft, given.lengths, given.delta, workspace=room, block=BLOCK
        )


def test_float64_rows_are_refused_by_name() -> None:
    given = random_round(Shape(num=1), 0)
    rows = replace(given.target, logits=given.target.logits.double())
    with pytest.raises(ConfigError, match="torch.float64; the Triton kernels read"):
        triton_rules.delta_rule(rows, given.draft, given.lengths, given.delta)


def test_one_uniform_for_accept_and_residual_biases_the_kernels_as_it_does_the_reference() -> None:
    """Control 7: p = (.2, .4, .4) and q = (.8, .1, .1) then give (1/5, 3/10, 1/2) instead of p."""
    num = 60
    p, q = torch.tensor([0.2, 0.4, 0.4]), torch.tensor([0.8, 0.1, 0.1])
    grid = ((torch.arange(num // 3, dtype=torch.float64) + 0.5) / (num // 3)).repeat(3)
    tokens = torch.arange(3).repeat_interleave(num // 3)
    sampling = batch_sampling([SamplingParams()] * num, 3, DEVICE)
    target = TargetRows(p.log().repeat(2 * num, 1).to(DEVICE), (2 * torch.arange(num)).to(DEVICE), sampling)
    log_q = q.log()[tokens][:, None].to(DEVICE)
    draft = Draft(tokens[:, None].to(DEVICE), q.log().expand(num, 1, 3).to(DEVICE), 0 * log_q, log_q)
    lengths, noise = torch.ones(num, dtype=torch.int64, device=DEVICE), grid[:, None].to(DEVICE)
    verdict = triton_rules.token_rule(target, draft, lengths, noise, noise.repeat(1, 2), block=4)
    emitted = torch.where(verdict.accepted.cpu() > 0, tokens, verdict.bonus.cpu())
    law = torch.zeros(3).index_add_(0, emitted, q[tokens] / (num // 3))
    torch.testing.assert_close(law, torch.tensor([0.2, 0.3, 0.5]), atol=0.02, rtol=0)
