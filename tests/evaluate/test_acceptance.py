"""Acceptance statistics against a process whose rates are known, and against the naive ways of counting."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspec.evaluate.acceptance import (
    PromptLength,
    bootstrap_ratio,
    compare_lengths,
    measure_acceptance,
    position_rates,
    prompt_lengths,
    tokens_gained,
)
from deepspec.types import RequestRound

G = 5
P_STOP = 0.12
#: A drafted stop token is accepted more often than others, so that the kind of token matters.
ALPHA_STOP = 0.95
ALPHA_PLAIN = (0.8, 0.7, 0.6, 0.65, 0.5)
#: Text after a stop token is another kind of text.
ALPHA_PAST_STOP = 0.05
ALPHA = tuple(P_STOP * ALPHA_STOP + (1 - P_STOP) * plain for plain in ALPHA_PLAIN)


def make_round(verified, accepted, *, emitted=None, stopped=False, drafted=G):
    emitted = accepted + 1 if emitted is None else emitted
    return RequestRound(
        request_id=0,
        drafted=drafted,
        verified=verified,
        accepted=accepted,
        emitted=emitted,
        stopped=stopped,
        tokens=(7,) * emitted,
    )


def simulated_round(rng, verified):
    """One round: stop tokens are drafted at random, and the verdict runs on beyond an accepted one."""
    accepted, stop_at = 0, None
    for k in range(verified):
        is_stop = rng.random() < P_STOP
        alpha = ALPHA_STOP if is_stop else ALPHA_PLAIN[k]
        if stop_at is not None:
            alpha = ALPHA_PAST_STOP
        if rng.random() >= alpha:
            break
        accepted += 1
        if is_stop and stop_at is None:
            stop_at = accepted
    if stop_at is None and rng.random() < P_STOP:
        stop_at = accepted + 1
    emitted = stop_at if stop_at is not None else accepted + 1
    return make_round(verified, accepted, emitted=emitted, stopped=stop_at is not None)


@pytest.fixture(scope="module")
def simulated():
    """60,000 rounds of full length."""
    rng = random.Random(0)
    return [simulated_round(rng, G) for _ in range(60_000)]


def deviations(rates):
    """How many standard errors each position is from the truth."""
    return [
        (a / n - alpha) / math.sqrt(alpha * (1 - alpha) / n)
        for a, n, alpha in zip(rates.accepted, rates.observed, ALPHA, strict=True)
    ]


# Five positions, two-sided: 4.5 standard errors are passed by chance once in 30,000 seeds.
BOUND = 4.5


def test_rates_are_right_although_stop_tokens_end_rounds(simulated):
    assert max(map(abs, deviations(position_rates(simulated, G)))) < BOUND


def test_survival_is_right_although_stop_tokens_end_rounds(simulated):
    rates = position_rates(simulated, G)
    # Greenwood's relative variance of a product-limit estimate.
    variance = np.cumsum([(1 - a) / (a * n) for a, n in zip(ALPHA, rates.observed, strict=True)])
    off = (np.array(rates.survival) / np.cumprod(ALPHA) - 1) / np.sqrt(variance)
    assert np.abs(off).max() < BOUND


NAIVE = {
    "counting what follows a stop token": lambda rounds: [make_round(r.verified, r.accepted) for r in rounds],
    "dropping rounds that end in one": lambda rounds: [r for r in rounds if not r.stopped],
    "taking the rest of the round for rejected": lambda rounds: [
        make_round(r.verified, min(r.accepted, r.emitted - 1)) for r in rounds
    ],
}


@pytest.mark.parametrize("way", NAIVE)
def test_each_naive_way_of_counting_is_biased_on_the_same_rounds(simulated, way):
    assert max(map(abs, deviations(position_rates(NAIVE[way](simulated), G)))) > 2 * BOUND


def test_survival_by_counting_survivors_among_all_rounds_is_biased(simulated):
    survivors = [min(r.accepted, r.emitted if r.stopped else G) for r in simulated]
    naive = sum(count == G for count in survivors) / len(survivors)
    truth = math.prod(ALPHA)
    assert abs(naive - truth) > 0.1 * truth


def test_verifying_less_is_not_taken_for_rejection():
    rng = random.Random(1)
    rounds = [simulated_round(rng, rng.randint(0, G)) for _ in range(60_000)]
    assert max(map(abs, deviations(position_rates(rounds, G)))) < BOUND


def test_counts_of_single_rounds_are_as_documented():
    def counts(*args, **kwargs):
        rates = position_rates([make_round(*args, **kwargs)], G)
        return rates.observed, rates.accepted

    assert counts(5, 5) == ((1, 1, 1, 1, 1), (1, 1, 1, 1, 1))
    assert counts(5, 2) == ((1, 1, 1, 0, 0), (1, 1, 0, 0, 0))
    assert counts(2, 2) == ((1, 1, 0, 0, 0), (1, 1, 0, 0, 0))
    assert counts(0, 0) == ((0, 0, 0, 0, 0), (0, 0, 0, 0, 0))
    # The second accepted token was the stop.
    assert counts(5, 4, emitted=2, stopped=True) == ((1, 1, 0, 0, 0), (1, 1, 0, 0, 0))
    # The bonus was the stop: the rejection before it happened.
    assert counts(5, 2, emitted=3, stopped=True) == ((1, 1, 1, 0, 0), (1, 1, 0, 0, 0))
    # The maximum cut the output, not the verdict.
    assert counts(5, 4, emitted=1) == ((1, 1, 1, 1, 1), (1, 1, 1, 1, 0))


@given(st.lists(st.tuples(st.integers(0, G), st.integers(0, G), st.integers(1, G + 1), st.booleans())))
def test_rates_are_probabilities_and_survival_never_increases(numbers):
    rounds = []
    for verified, wanted, emitted, stopped in numbers:
        accepted = min(wanted, verified)
        rounds.append(make_round(verified, accepted, emitted=min(emitted, accepted + 1), stopped=stopped))
    rates = position_rates(rounds, G)
    assert all(0 <= a <= n <= len(rounds) for a, n in zip(rates.accepted, rates.observed, strict=True))
    assert list(rates.observed) == sorted(rates.observed, reverse=True)
    # What is looked at next was accepted before.
    assert all(rates.observed[k + 1] <= rates.accepted[k] for k in range(G - 1))
    known = [s for s in rates.survival if s is not None]
    assert known == sorted(known, reverse=True)
    assert rates.survival == (*known, *[None] * (G - len(known)))


def test_a_round_is_worth_its_tokens_up_to_a_stop_and_past_the_maximum():
    assert tokens_gained(make_round(5, 3)) == 4
    assert tokens_gained(make_round(5, 3, emitted=2, stopped=True)) == 2
    assert tokens_gained(make_round(5, 3, emitted=2)) == 4


def test_accepted_length_does_not_depend_on_where_the_maximum_cuts():
    rng = random.Random(2)
    weights = (4, 3, 2, 1, 1, 1)
    truth = sum((a + 1) * w for a, w in enumerate(weights)) / sum(weights)
    prompts, cut = [], []
    for _ in range(4_000):
        left, rounds = 12, []
        while left > 0:
            accepted = rng.choices(range(G + 1), weights)[0]
            rounds.append(make_round(G, accepted, emitted=min(left, accepted + 1)))
            left -= accepted + 1
        prompts.append(rounds)
        cut += [r.emitted for r in rounds]
    found = measure_acceptance(prompts, draft_length=G).accepted_length
    assert found.low < truth < found.high
    assert found.high - found.low < 0.06
    assert sum(cut) / len(cut) < found.low  # what counting emitted tokens would say


def test_the_ratio_is_of_sums_over_prompts():
    prompts = [[make_round(5, 5)] * 3, [make_round(5, 0)], []]
    found = measure_acceptance(prompts, draft_length=G)
    assert found.accepted_length.mean == pytest.approx(19 / 4)
    assert (found.num_prompts, found.num_rounds) == (3, 4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered, repeats = 0, 400
    for seed in range(repeats):
        # Prompts differ in difficulty and in how many rounds they last, which rounds alone would hide.
        rounds = rng.integers(5, 30, size=60).astype(float)
        difficulty = rng.normal(2.5, 0.5, size=60)
        gained = rounds * difficulty + rng.normal(0, np.sqrt(rounds))
        found = bootstrap_ratio(gained, rounds, seed=seed, resamples=400)
        covered += found.low <= 2.5 <= found.high
    # 95 % nominal; the percentile bootstrap of 60 prompts undercovers a little, binomial noise is 1.1 %.
    assert 0.90 < covered / repeats < 0.985


def test_the_bootstrap_resamples_prompts_not_rounds():
    easy, hard = [make_round(5, 5)] * 50, [make_round(5, 0)] * 50
    found = measure_acceptance([easy, hard], draft_length=G).accepted_length
    assert (found.low, found.high) == (1.0, 6.0)


def test_the_bootstrap_depends_on_its_seed_alone():
    gained, counts = np.arange(1.0, 40.0), np.full(39, 3.0)
    assert bootstrap_ratio(gained, counts, seed=1) == bootstrap_ratio(gained, counts, seed=1)
    assert bootstrap_ratio(gained, counts, seed=1) != bootstrap_ratio(gained, counts, seed=2)


def test_without_a_round_there_is_no_accepted_length_and_no_rate():
    found = measure_acceptance([[], []], draft_length=G)
    assert found.accepted_length is None
    assert found.rates.conditional == (None,) * G
    assert found.rates.survival == (None,) * G


def test_two_accepted_lengths_are_compared_by_their_own_means():
    a = [PromptLength(30, 10), PromptLength(8, 4), PromptLength(0, 0)]
    b = [PromptLength(20, 10), PromptLength(6, 5), PromptLength(0, 0)]
    found = compare_lengths(a, b)
    assert found.difference.mean == pytest.approx(38 / 14 - 26 / 15)
    assert found.ratio.mean == pytest.approx((38 / 14) / (26 / 15))
    with pytest.raises(ValueError):
        compare_lengths(a, b[:2])


def test_a_difference_that_is_the_same_on_every_prompt_is_certain_however_much_prompts_differ():
    hard = [PromptLength(10 * n, 10) for n in range(1, 9)]
    easier = [PromptLength(10 * n + 5, 10) for n in range(1, 9)]
    found = compare_lengths(easier, hard)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.5, 0.5))
    assert found.ratio.low < found.ratio.mean < found.ratio.high
    alone = bootstrap_ratio(*np.array(hard, dtype=float).T, seed=0)
    assert alone.high - alone.low > 2


def test_the_paired_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered, repeats = 0, 200
    for seed in range(repeats):
        difficulty = rng.normal(2.5, 0.8, size=60)
        sides = []
        for gain in (0.2, 0.0):
            rounds = rng.integers(5, 30, size=60)
            gained = rounds * (difficulty + gain) + rng.normal(0, np.sqrt(rounds))
            sides.append([PromptLength(*pair) for pair in zip(gained, rounds, strict=True)])
        found = compare_lengths(*sides, seed=seed).difference
        covered += found.low <= 0.2 <= found.high
    assert 0.89 < covered / repeats <= 0.99  # 95 % nominal, binomial noise is 1.5 %


def test_without_rounds_on_both_sides_there_is_nothing_to_compare():
    rounds = prompt_lengths([[make_round(5, 2)] * 3, []])
    assert rounds == [(9, 3), (0, 0)]
    assert compare_lengths(rounds, [PromptLength(0, 0)] * 2) is None
    assert compare_lengths([], []) is None
