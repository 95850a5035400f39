"""The verification rules against exact laws: enumeration over drafts and quadrature over uniforms."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deepspec.kernels import reference
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.sampling.categorical import BLOCK, draw
from deepspec.types import Draft, Sampling, TargetRows, Verdict

Rule = Callable[[TargetRows, Draft, Tensor, Tensor, Tensor], Verdict]
CPU = torch.device("cpu")
GRID = 400


def _sampling(num: int, vocab: int, **params: float) -> Sampling:
    return batch_sampling([SamplingParams(**params)] * num, vocab, CPU)


def _draft(tokens: Tensor, log_q: Tensor) -> Draft:
    return Draft(
        tokens=tokens,
        logits=log_q,
        log_sum_exp=log_q.logsumexp(-1),
        log_q=log_q.gather(-1, tokens[..., None])[..., 0] - log_q.logsumexp(-1),
    )


def _midpoints(num: int) -> Tensor:
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(0, 2))
def test_token_rule_emits_the_targets_law(seed: int, vocab: int, length: int) -> None:
    """First emitted token over every drafted block and a fine grid of uniforms; errors are O(1/GRID)."""
    generator = torch.Generator().manual_seed(seed)
    log_p = torch.randn(length + 1, vocab, generator=generator, dtype=torch.float64)
    log_q = torch.randn(1, length, vocab, generator=generator, dtype=torch.float64)
    law = torch.zeros(vocab, dtype=torch.float64)
    grid = _midpoints(GRID)
    for block in itertools.product(range(vocab), repeat=length):
        tokens = torch.tensor([block], dtype=torch.int64).view(1, length)
        draft = _draft(tokens, log_q)
        weight = draft.log_q.exp().prod()
        target = TargetRows(log_p.repeat(GRID, 1), torch.arange(GRID) * (length + 1), _sampling(GRID, vocab))
        many = Draft(
            *(
                part.expand(GRID, *part.shape[1:])
                for part in (draft.tokens, draft.logits, draft.log_sum_exp, draft.log_q)
            )
        )
        accept = grid[torch.randperm(GRID, generator=generator)][:, None].expand(GRID, length)
        residual = torch.stack([grid, grid[torch.randperm(GRID, generator=generator)]], -1)
        verdict = reference.token_rule(target, many, torch.full((GRID,), length), accept, residual)
        first = tokens[:, :1].expand(GRID, -1)[:, 0] if length else verdict.bonus
        first = torch.where(verdict.accepted > 0, first, verdict.bonus)
        law += weight * torch.bincount(first, minlength=vocab) / GRID
    # The residual draw is conditional on rejection, so its grid is a random subset: a statistical bound.
    assert (law - log_p[0].softmax(-1)).abs().max() < 5 / GRID**0.5 / 2


def test_accepting_is_strict_and_stops_at_the_first_rejection() -> None:
    even = [0.5, 0.25, 0.25]
    log_p = torch.tensor([[0.25, 0.25, 0.5], even, even], dtype=torch.float64).log()
    log_q = torch.tensor([[even, even]], dtype=torch.float64).log()
    draft = _draft(torch.tensor([[0, 0]]), log_q)
    target = TargetRows(log_p, torch.tensor([0]), _sampling(1, 3))
    lengths, residual = torch.tensor([2]), torch.tensor([[0.0, 0.0]], dtype=torch.float64)

    def accepted(u: float) -> int:
        noise = torch.tensor([[u, 0.0]], dtype=torch.float64)
        return int(reference.token_rule(target, draft, lengths, noise, residual).accepted)

    assert accepted(0.499) == 2
    assert accepted(0.5) == 0  # u q = p exactly: refused


def test_rejection_draws_from_the_positive_difference_only() -> None:
    p, q = torch.tensor([[0.1, 0.6, 0.3]]).double(), torch.tensor([[[0.5, 0.5, 0.0]]]).double()
    draft = _draft(torch.tensor([[0]]), q.log())
    target = TargetRows(torch.cat([p, p]).log(), torch.tensor([0]), _sampling(1, 3))
    drawn = set()
    for u in _midpoints(200):
        residual = torch.tensor([[0.5, float(u)]]).double()
        verdict = reference.token_rule(
            target, draft, torch.tensor([1]), torch.tensor([[0.99]]).double(), residual
        )
        drawn.add((int(verdict.accepted), int(verdict.bonus)))
    assert drawn == {(0, 1), (0, 2)}


def test_the_residual_is_that_of_the_refused_position() -> None:
    p = torch.tensor([[0.0, 0.5, 0.5], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5]]).double()
    q = torch.tensor([[[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]]]).double()
    draft = _draft(torch.tensor([[1, 0]]), q.log())
    target = TargetRows(p.log(), torch.tensor([0]), _sampling(1, 3))
    drawn = set()
    for u in _midpoints(200):
        noise = (torch.tensor([[0.0, 0.99]]).double(), torch.tensor([[0.5, float(u)]]).double())
        verdict = reference.token_rule(target, draft, torch.tensor([2]), *noise)
        drawn.add((int(verdict.accepted), int(verdict.bonus)))
    assert drawn == {(1, 1), (1, 2)}


def test_an_empty_residual_gives_the_argmax_and_never_a_token_without_mass() -> None:
    weights = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).double()
    for u in (0.0, 0.25, 0.999999999, 1 - 2**-53):
        assert int(draw(weights, torch.tensor([[0.0, u]]).double())) in (1, 2)
    p = torch.tensor([[0.25, 0.75]]).double()
    draft = _draft(torch.tensor([[0]]), p.log()[None])
    # A q above p everywhere leaves nothing, and a log q of 0 refuses.
    forced = Draft(draft.tokens, draft.logits, draft.log_sum_exp - 0.1, torch.zeros(1, 1).double())
    target = TargetRows(torch.cat([p, p]).log(), torch.tensor([0]), _sampling(1, 2))
    verdict = reference.token_rule(
        target, forced, torch.tensor([1]), torch.tensor([[0.5]]).double(), torch.zeros(1, 2).double()
    )
    assert (int(verdict.accepted), int(verdict.bonus)) == (0, 1)


def test_disjoint_support_always_rejects_and_keeps_the_targets_law() -> None:
    p, q = torch.tensor([[0.0, 0.0, 0.3, 0.7]]).double(), torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]).double()
    target = TargetRows(torch.cat([p, p]).log().repeat(GRID, 1), torch.arange(GRID) * 2, _sampling(GRID, 4))
    draft = _draft(torch.ones(GRID, 1, dtype=torch.int64), q.log().expand(GRID, -1, -1))
    residual = torch.stack([torch.zeros(GRID).double(), _midpoints(GRID)], -1)
    verdict = reference.token_rule(
        target, draft, torch.ones(GRID, dtype=torch.int64), torch.zeros(GRID, 1).double(), residual
    )
    assert int(verdict.accepted.max()) == 0
    torch.testing.assert_close(
        torch.bincount(verdict.bonus, minlength=4) / GRID, p[0].float(), atol=1 / GRID, rtol=0
    )


def test_equal_rows_accept_everything() -> None:
    log_p = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    draft = _draft(torch.tensor([[1, 3]]), log_p[None, :2])
    verdict = reference.token_rule(
        TargetRows(log_p, torch.tensor([0]), _sampling(1, 5)),
        draft,
        torch.tensor([2]),
        torch.full((1, 2), 1 - 2**-30, dtype=torch.float64),
        torch.zeros(1, 2).double(),
    )
    assert int(verdict.accepted) == 2


def test_large_vocabularies_draw_by_block_and_then_inside_it() -> None:
    vocab = 2 * BLOCK + 17
    weights = torch.zeros(3, vocab, dtype=torch.float64)
    hot = [5, BLOCK + 9, vocab - 1]
    weights[:, hot] = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
    uniforms = torch.tensor([[0.1, 0.9], [0.3, 0.2], [0.6, 0.5]], dtype=torch.float64)
    assert draw(weights, uniforms).tolist() == hot


def test_each_level_of_a_large_draw_has_a_uniform_of_its_own() -> None:
    weights = torch.zeros(2, 2 * BLOCK, dtype=torch.float64)
    weights[:, [0, 1, BLOCK, BLOCK + 1]] = 0.25
    uniforms = torch.tensor([[0.2, 0.7], [0.7, 0.2]], dtype=torch.float64)
    assert draw(weights, uniforms).tolist() == [1, BLOCK]


@pytest.mark.parametrize("rule", [reference.token_rule, reference.block_rule])
def test_ragged_requests_equal_one_by_one(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([0, 3, 1, 2])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (lengths + 1).cumsum(0)[:-1]])
    logits = torch.randn(int((lengths + 1).sum()), 11, generator=generator)
    draft = _draft(
        torch.randint(0, 11, (4, 3), generator=generator), torch.randn(4, 3, 11, generator=generator)
    )
    params = [SamplingParams(temperature=t) for t in (0.0, 1.0, 0.7, 1.3)]
    accept, residual = torch.rand(4, 3, generator=generator), torch.rand(4, 2, generator=generator)
    together = rule(
        TargetRows(logits, starts, batch_sampling(params, 11, CPU)), draft, lengths, accept, residual
    )
    for r in range(4):
        rows = slice(int(starts[r]), int(starts[r]) + int(lengths[r]) + 1)
        one = Draft(
            draft.tokens[r : r + 1],
            draft.logits[r : r + 1],
            draft.log_sum_exp[r : r + 1],
            draft.log_q[r : r + 1],
        )
        target = TargetRows(logits[rows], torch.tensor([0]), batch_sampling([params[r]], 11, CPU))
        alone = rule(target, one, lengths[r : r + 1], accept[r : r + 1], residual[r : r + 1])
        assert (int(alone.accepted), int(alone.bonus)) == (int(together.accepted[r]), int(together.bonus[r]))


def test_uniforms_that_round_to_one_still_accept_equal_rows() -> None:
    rows = torch.tensor([[0.5, 0.5]]).log()
    draft = _draft(torch.tensor([[0]]), rows[None])
    noise = torch.full((1, 1), 1 - 2**-53, dtype=torch.float64)
    target = TargetRows(rows.repeat(2, 1), torch.tensor([0]), _sampling(1, 2))
    verdict = reference.token_rule(target, draft, torch.tensor([1]), noise, torch.zeros(1, 2))
    assert int(verdict.accepted) == 1


@pytest.mark.parametrize("rule", ["token", "block", "delta"])
def test_rows_past_a_requests_length_do_not_matter(rule: str) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(8, 7, generator=generator)
    poisoned = logits.clone()
    poisoned[3] = float("nan")  # request 0 verifies two of three drafts: its fourth row is padding
    draft = _draft(
        torch.randint(0, 7, (2, 3), generator=generator), torch.randn(2, 3, 7, generator=generator)
    )
    lengths, starts = torch.tensor([2, 3]), torch.tensor([0, 4])
    noise = torch.rand(2, 4, 2, generator=generator)

    def run(rows: Tensor) -> list[list[int]]:
        target = TargetRows(rows, starts, _sampling(2, 7))
        if rule == "delta":
            verdict = reference.delta_rule(target, draft, lengths, noise)
        else:
            decide = reference.token_rule if rule == "token" else reference.block_rule
            verdict = decide(target, draft, lengths, noise[:, :3, 0], noise[:, 0])
        return [verdict.accepted.tolist(), verdict.bonus.tolist()]

    assert run(logits) == run(poisoned)


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 4), st.floats(0.1, 3.0))
def test_the_block_rule_never_accepts_fewer_tokens_in_expectation(
    seed: int, vocab: int, length: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.tensor(list(itertools.product(range(vocab), repeat=length)))

    def rows(num: int) -> Tensor:
        """``[blocks, num, V]``: what follows a prefix is the same in every block that begins with it."""
        columns = []
        for depth in range(num):
            found = spread * torch.randn(vocab**depth, vocab, generator=generator, dtype=torch.float64)
            columns.append(found.repeat_interleave(vocab ** (length - depth), dim=0))
        return torch.stack(columns, dim=1)

    starts = torch.arange(len(blocks)) * (length + 1)
    target = TargetRows(rows(length + 1).flatten(0, 1), starts, _sampling(len(blocks), vocab))
    draft, lengths = _draft(blocks, rows(length)), torch.full((len(blocks),), length)
    weights, counts = draft.log_q.sum(dim=1).exp(), torch.arange(length + 1, dtype=torch.float64)
    token, block = (
        float(weights @ (outcome(target, draft, lengths).sum(dim=-1) @ counts))
        for outcome in (reference.token_outcome, reference.block_outcome)
    )
    assert block >= token - 1e-12


def test_every_position_is_tested_and_the_last_that_passes_counts() -> None:
    """P = (1/2, 1): the first test fails and the second cannot, so that both tokens stay."""
    log_p = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64).log()
    log_q = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]], dtype=torch.float64).log()
    draft = _draft(torch.tensor([[0, 0]]), log_q)
    target = TargetRows(log_p, torch.tensor([0]), _sampling(1, 2))

    def accepted(*u: float) -> int:
        noise, closing = torch.tensor([u], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
        return int(reference.block_rule(target, draft, torch.tensor([2]), noise, closing).accepted)

    assert accepted(0.999, 0.999) == 2  # P_2 = min(1, 1/2 x 2) = 1
    target = TargetRows(log_p.flip(0)[[2, 2, 1]], torch.tensor([0]), _sampling(1, 2))
    # P = (1/2, 1/2), Z_1 = (1/8 - 1/4)+ + (3/8 - 3/4)+ = 0: the first test cannot pass.
    assert [accepted(0.0, u) for u in (0.499, 0.501)] == [2, 0]


@pytest.mark.parametrize("rule", [reference.token_rule, reference.block_rule])
def test_a_peak_with_a_long_tail_is_as_likely_in_float32_as_it_is(rule: Rule) -> None:
    """float32's softmax alone gives a peak like this 4e-4 too much."""
    vocab = 151_936
    rows = torch.full((2, vocab), 1e-6).log()
    rows[:, 5] = 0.0
    chance = rows[0].double().softmax(dim=-1)[5]
    certain = torch.zeros(1, 1)
    draft = Draft(torch.tensor([[5]]), None, certain, certain)
    target = TargetRows(rows, torch.tensor([0]), _sampling(1, vocab))
    decided = [
        rule(target, draft, torch.tensor([1]), (chance * factor).view(1, 1), torch.full((1, 2), 0.5))
        for factor in (1 - 1e-5, 1 + 1e-5)
    ]
    assert [int(one.accepted) for one in decided] == [1, 0]
