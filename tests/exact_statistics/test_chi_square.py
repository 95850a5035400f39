"""The engine's own law, by chi-square: the first four tokens of many requests against the target's exact law.

The first token closes the prompt and the next three are a whole round of G = 2 or parts of several, so
acceptance, residual and bonus all show. Every prefix of one to four tokens is tested: a bias of the first
alone would drown among the cells of four. Seeds are fixed, so a verdict never changes; with other seeds the
whole suite would raise a false alarm once in ``1 / FALSE_ALARMS`` runs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepspec.engine import Engine, SamplingParams
from deepspec.interfaces import PartConfig, RoundUniforms, Verifier
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.types import Draft, Span, TargetRows, Verdict
from tests.exact_statistics.compositions import (
    POLICIES,
    STRATEGIES,
    THOROUGH,
    VERIFIERS,
    build,
    tiny_target,
)

VOCAB, DRAFT_LENGTH, NUM_TOKENS, PROMPT = 4, 2, 4, (0, 1, 2)
FALSE_ALARMS = 1e-6
MIN_EXPECTED = 10
#: Draws for one composition a verifier, and for each of the rest.
pytestmark = pytest.mark.thorough
MANY, FEW = (100_000, 20_000) if THOROUGH else (20_000, 4_000)
BATCH = 4096
SAMPLED = SamplingParams(temperature=1.2, max_tokens=NUM_TOKENS)
TRUNCATED = SamplingParams(temperature=1.5, top_k=3, top_p=0.93, max_tokens=NUM_TOKENS)
CASES = [
    *[("dspark", "threshold", verifier, SAMPLED, MANY) for verifier in VERIFIERS],
    *[(name, policy, "token", SAMPLED, FEW) for name in STRATEGIES for policy in POLICIES],
    *[("dspark", "fixed", verifier, TRUNCATED, FEW) for verifier in VERIFIERS],
]
BIAS = 0.01


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target(VOCAB, initializer_range=0.3)


def exact_law(target: Target, params: SamplingParams) -> Tensor:
    """Probabilities ``[V, V, V, V]`` of the four tokens after the prompt, each prefix on its own."""
    law = torch.ones((), dtype=torch.float64)
    for length in range(NUM_TOKENS):
        rows = torch.stack([_next_law(target, prefix, params) for prefix in _prefixes(length)])
        law = law[..., None] * rows.view((VOCAB,) * (length + 1))
    return law


def _prefixes(length: int) -> list[list[int]]:
    tokens = torch.cartesian_prod(*[torch.arange(VOCAB)] * length).view(-1, length) if length else [()]
    return [[*PROMPT, *map(int, more)] for more in tokens]


@torch.no_grad()
def _next_law(target: Target, text: list[int], params: SamplingParams) -> Tensor:
    """Temperature, then top-k, then top-p, written out token by token."""
    features = target.forward(torch.tensor(text), [Span(0, 0, len(text))], None, ())
    weights = (target.logits(features.last_hidden[-1]) / params.temperature).softmax(-1).tolist()
    order = sorted(range(VOCAB), key=lambda token: -weights[token])[: params.top_k or VOCAB]
    total, mass, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if mass < params.top_p * total:
            kept.append(token)
        mass += weights[token]
    law = torch.zeros(VOCAB, dtype=torch.float64)
    law[kept] = torch.tensor([weights[token] for token in kept], dtype=torch.float64)
    return law / law.sum()


def draw_counts(target: Target, parts: Parts | None, params: SamplingParams, num_draws: int) -> Tensor:
    """How often the engine gave each four tokens ``[V, V, V, V]``, over seeds 0 .. num_draws - 1."""
    counts = torch.zeros(VOCAB**NUM_TOKENS, dtype=torch.int64)
    digits = VOCAB ** torch.arange(NUM_TOKENS - 1, -1, -1)
    engine = Engine(
        target,
        parts,
        max_batch=BATCH,
        max_positions=len(PROMPT) + NUM_TOKENS,
        prefill_chunk=BATCH * len(PROMPT),
    )
    for start in range(0, num_draws, BATCH):
        seeds = range(start, min(start + BATCH, num_draws))
        done = engine.run([PROMPT] * len(seeds), [replace(params, seed=seed) for seed in seeds])
        cells = torch.tensor([completion.tokens for completion in done]) @ digits
        counts += torch.bincount(cells, minlength=len(counts))
    return counts.view((VOCAB,) * NUM_TOKENS)


def p_value(counts: Tensor, law: Tensor) -> float:
    """The smallest of the chi-square p-values for the first one, two, .. tokens, times their number."""
    found = []
    for length in range(1, counts.ndim + 1):
        later = tuple(range(length, counts.ndim))
        found.append(_chi_square(_summed(counts, later).flatten(), _summed(law, later).flatten()))
    return len(found) * min(found)


def _summed(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    return values.sum(dim=dims) if dims else values


def _chi_square(counts: Tensor, law: Tensor) -> float:
    """Chance of a larger statistic under ``law``; cells expected under ten times are pooled."""
    if counts[law == 0].any():
        return 0.0
    expected, order = (law * counts.sum()).sort(descending=True)
    found = counts[order].double()
    own = max(1, int((expected >= MIN_EXPECTED).sum()))
    if expected[own:].sum() < MIN_EXPECTED:
        own -= 1  # the pool alone would be too small: the smallest cell joins it
    expected = torch.cat([expected[:own], expected[own:].sum()[None]])
    found = torch.cat([found[:own], found[own:].sum()[None]])
    statistic = ((found - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor(own / 2.0).double(), statistic / 2))


@pytest.mark.parametrize(
    ("name", "policy", "verifier", "params", "num_draws"),
    CASES,
    ids=[f"{n}-{p}-{v}-{'truncated' if s is TRUNCATED else 'sampled'}-{d}" for n, p, v, s, d in CASES],
)
def test_the_first_tokens_follow_the_targets_law(
    target: Target, name: str, policy: str, verifier: str, params: SamplingParams, num_draws: int
) -> None:
    parts = build(target.info, name, DRAFT_LENGTH, target.dtype, policy=policy, verifier=verifier)
    counts = draw_counts(target, parts, params, num_draws)
    assert p_value(counts, exact_law(target, params)) > FALSE_ALARMS / len(CASES)


class _Biased(Verifier):
    """The token rule, but the token that closes a prompt is ``token`` with chance ``chance``."""

    name = "biased"
    streams = frozenset({"accept", "residual"})

    def __init__(self, inner: Verifier, token: int, chance: float) -> None:
        super().__init__(PartConfig(), inner.context)
        self.inner, self.token, self.chance = inner, token, chance

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        verdict = self.inner.verify(target, draft, lengths, uniforms)
        if draft.tokens.shape[1] > 0:
            return verdict
        # With few tokens the rule draws by the second uniform alone, so the first is free.
        forced = uniforms.residual[:, 0] < self.chance
        return Verdict(verdict.accepted, verdict.bonus.masked_fill(forced, self.token))

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        raise NotImplementedError("what it says of itself is another test's business")


@pytest.mark.parametrize("hard", [False, True] if THOROUGH else [False])
def test_a_bias_of_a_hundredth_is_caught(target: Target, hard: bool) -> None:
    """Towards the rarest token with few draws; towards the commonest, where it shows least, with many."""
    law = exact_law(target, SAMPLED)
    first = law.sum(dim=(1, 2, 3))
    token = int(first.argmax() if hard else first.argmin())
    parts = build(target.info, "dspark", DRAFT_LENGTH, target.dtype, verifier="token")
    chance = BIAS / (1 - float(first[token]))
    biased = replace(parts, verifier=_Biased(parts.verifier, token, chance))
    counts = draw_counts(target, biased, SAMPLED, 200_000 if hard else 20_000)
    assert p_value(counts, law) < FALSE_ALARMS / len(CASES)


def test_every_token_and_every_length_of_a_round_occurs(target: Target) -> None:
    """The law is worth testing: no cell is certain, and rounds accept none, some and all of a draft."""
    law = exact_law(target, SAMPLED)
    assert law.max() < 0.5
    lengths = set()
    parts = build(target.info, "dspark", DRAFT_LENGTH, target.dtype, policy="threshold")
    engine = Engine(
        target,
        parts,
        observers=[lambda record: lengths.update((r.verified, r.accepted) for r in record.requests)],
        max_positions=64,
    )
    engine.run([PROMPT] * 20, SamplingParams(max_tokens=20))
    assert lengths == {(v, a) for v in range(DRAFT_LENGTH + 1) for a in range(v + 1)}
