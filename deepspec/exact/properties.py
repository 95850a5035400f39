"""The properties that a composition must have, each with what breaks when it does not.

A property is asked of a :class:`Subject` and answers with a :class:`Finding`. Here are those of the output's
law and of the noise; the promises of single parts are in ``contracts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.exact.law import Laws, Strings, all_blocks, one_request, possible_blocks, two_requests
from deepspec.exact.noise import VerdictCutter, shared_noise
from deepspec.exact.parts import for_vocabulary, random_parts
from deepspec.exact.rows import ChosenDraft, Rows, sampler_edges
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import Proposer, Verifier
from deepspec.sampling import SamplingParams, batch_sampling, sampler
from deepspec.strategy import Parts, Strategy
from deepspec.types import Draft, TargetRows

if TYPE_CHECKING:
    import pluggy

#: Sums of some thousand float64 products.
EXACT = 1e-12
#: float32 rows: uniforms and cumulative sums of a few tokens, rounded.
SINGLE = 1e-6
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """The composition under check, built small for toy targets."""

    strategy: Strategy
    manager: pluggy.PluginManager

    def build(self, vocab: int, num_draft: int, seed: int) -> tuple[ToyTarget, Parts]:
        """A random target and random parts; no more tokens are drafted than the strategy drafts."""
        target = ToyTarget(vocab, seed=seed, num_layers=self._num_layers)
        strategy = for_vocabulary(self.strategy, vocab, self.manager)
        strategy = strategy.replace(draft_length=min(num_draft, strategy.draft_length))
        return target, random_parts(strategy, target, seed, self.manager)

    @cached_property
    def _num_layers(self) -> int:
        """Layers of the toy target: more than a few where the strategy names those of a deep target."""
        info = ToyTarget().info
        strategy = for_vocabulary(self.strategy, info.vocab_size, self.manager)
        tapped = strategy.build(info, manager=self.manager).drafter.target_layers
        return max(info.num_layers, 2 + max(tapped, default=0))

    @property
    def all_verified(self) -> Subject:
        """The same with another policy, so that a cautious one does not hide the other parts."""
        return replace(self, strategy=self.strategy.replace(policy="fixed"))


@dataclass(frozen=True)
class Finding:
    """What a property measured.

    Attributes:
        error: the largest; None when nothing is measured. allowed: what it may be where the property holds.
        holds: what was found, in words. broken: of a failure, what is wrong and why that does harm.
    """

    error: float | None
    allowed: float
    holds: str
    broken: str

    @property
    def passed(self) -> bool:
        """Whether the error is allowed (one that is not a number is not)."""
        return self.error is None or self.error <= self.allowed


def texts(parts: Parts, start: Sequence[int]) -> list[list[int]]:
    """Texts to decode after; a model-free drafter finds something to propose in some, so it gets several."""
    if not isinstance(parts.drafter, Proposer):
        return [[*start]]
    vocab = parts.drafter.context.target.vocab_size
    return [[*start, *block] for block in all_blocks(vocab, 2).tolist()]


def output_law(subject: Subject) -> Finding:
    """Two rounds of one request have the target's law, by enumeration."""
    own = [(subject, 3, 3, 1.0), (subject, 4, 2, 1.0), *[(subject, 3, 2, 1.0)] * 5]
    verified = [(subject.all_verified, 3, 2, temperature) for temperature in (1.0, 0.6, 0.0)]
    laws = []
    for seed, (composition, vocab, num_draft, temperature) in enumerate([*own, *verified]):
        target, parts = composition.build(vocab, num_draft, seed)
        for text in texts(parts, [0, vocab - 1, 1]):
            laws.append(one_request(target, parts, text, temperature))
    return _of_laws(
        laws,
        "two rounds of one request",
        "a draft token's own value, or what was drafted after it, decides whether it is verified, or a rule "
        "does not keep the target's law; text written this way is not the target's",
    )


def joint_law(subject: Subject) -> Finding:
    """Two rounds of two requests that share steps have the product of their laws, by enumeration."""
    laws = []
    for seed in range(8):
        target, parts = subject.build(2, 2, seed)
        first, second = texts(parts, [0, 1, 1]), texts(parts, [1, 0])
        for pair in zip(first, reversed(second), strict=True):
            laws.append(two_requests(target, parts, pair))
    return _of_laws(
        laws,
        "two rounds of two requests together",
        "verify lengths depend on what a request drafted past its own length, so that one request's text "
        "tells something of the other's, and together they are not the target's",
    )


def _of_laws(laws: list[Laws], what: str, why: str) -> Finding:
    lengths = sorted({length for law in laws for length in law.lengths})
    listed = ", ".join(map(str, lengths))
    return Finding(
        error=max(law.error for law in laws),
        allowed=EXACT,
        holds=f"{what} have the target's law ({len(laws)} random cases, verify lengths {listed})",
        broken=f"{what} do not have the target's law: {why}",
    )


def noise(subject: Subject) -> Finding:
    """Two rounds have the law of independent uniforms with the very ones that the engine hands to both."""
    errors = []
    for seed, (composition, vocab) in enumerate([(subject.all_verified, 3), (subject, 2), (subject, 2)]):
        target, parts = composition.build(vocab, 2, seed)
        for text in texts(parts, [0, 1]):
            one, free = shared_noise(target, parts, text), one_request(target, parts, text)
            errors.append(float((one.emitted - free.emitted).abs().sum() / 2))
    return Finding(
        error=max(errors),
        allowed=EXACT,
        holds="two rounds keep their law also when a uniform that the engine hands out twice is one",
        broken="one uniform decides two things (draft, acceptance and residual share noise, or a round reads "
        "again what an earlier one read and threw away): decisions that must be independent are not, and the "
        "output is biased",
    )


def verdict_law(subject: Subject) -> Finding:
    """``verify`` integrated over its uniforms is ``outcome()``, for every block and length."""
    target, parts = subject.build(3, 2, 0)
    num_draft = parts.drafter.context.draft_length
    after, blocks = texts(parts, [0, 2, 1]), possible_blocks(parts, num_draft)
    each = len(blocks) * (num_draft + 1)
    lengths = torch.arange(num_draft + 1).repeat(len(blocks) * len(after))
    blocks = blocks.repeat_interleave(num_draft + 1, dim=0).repeat(len(after), 1)
    rows = Rows(target, parts, [text for text in after for _ in range(each)])
    draft = rows.draft(blocks).draft
    target_rows = rows.verify_rows(draft)
    stated = parts.verifier.outcome(target_rows, draft, lengths)
    found = VerdictCutter(parts.verifier, target_rows, draft, lengths).boxes().law(stated)
    return Finding(
        error=float((found - stated).abs().max()),
        allowed=EXACT,
        holds=f"verify's decisions have the law that outcome() states ({len(blocks)} drafts and lengths)",
        broken="verify's decisions do not have the law that outcome() states: one of them is wrong, or "
        "verify decides two things by one uniform; what is proved of outcome() is not true of what runs",
    )


def degenerate_rows(subject: Subject) -> Finding:
    """Rows at the edge of the rules keep the law, and nothing without mass is emitted."""
    verifier = subject.build(3, 2, 0)[1].verifier
    some, half = [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]
    cases = {
        "p = q": ([some, half, some], [some, half]),
        "disjoint support": ([half, some, some], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        "p without some tokens": ([half, [1.0, 0.0, 0.0], half], [some, some]),
        "q without some tokens": ([some, some, some], [half, [0.0, 1.0, 0.0]]),
        "a one-token vocabulary": ([[1.0]] * 3, [[1.0]] * 2),
    }
    errors = {}
    for name, (p, q) in cases.items():
        target, draft = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
        errors[name] = max(_edge_error(verifier, target, draft, length) for length in range(len(p)))
    certain = torch.eye(3, dtype=torch.float64)
    target = torch.tensor([half, some, half], dtype=torch.float64)
    errors["a draft that is certain"] = max(
        _edge_error(verifier, target, certain[block], length, has_rows=False)
        for block in ([0, 0], [1, 0], [2, 1])
        for length in range(3)
    )
    errors["a residual without mass"] = _massless_error(verifier, torch.tensor(half, dtype=torch.float64))
    wrong = [name for name, error in errors.items() if not error <= EXACT]
    return Finding(
        error=max(errors.values()) if not wrong else errors[wrong[0]],
        allowed=EXACT,
        holds=f"length 0, {', '.join(errors)}",
        broken=f"wrong for {', '.join(wrong)}: such rows come up with truncated sampling and confident "
        "models, and the output is then off, or has tokens that the target never gives",
    )


def _edge_error(verifier: Verifier, p: Tensor, q: Tensor, length: int, *, has_rows: bool = True) -> float:
    """How far a round's law is off for rows p ``[G+1, V]`` and q ``[G, V]`` that depend on no token.

    Without ``has_rows`` q is one-hot and left out of the draft, as a model-free drafter's is.
    """
    num_draft, vocab = q.shape
    blocks = all_blocks(vocab, num_draft)
    blocks = blocks[q[torch.arange(num_draft), blocks].prod(dim=1) > 0]  # the others are never drafted
    draft = _draft_of(q, blocks)
    if not has_rows:
        draft = replace(draft, logits=None)
    target = _rows_of(p, len(blocks))
    lengths = torch.full((len(blocks),), length)
    stated = verifier.outcome(target, draft, lengths)
    found = VerdictCutter(verifier, target, draft, lengths).boxes().law(stated)
    strings = Strings(vocab, num_draft + 1, lambda before: p[before.shape[1]].expand(len(before), -1))
    mass = torch.zeros(len(strings), dtype=torch.float64)
    nothing = torch.zeros(len(blocks), dtype=torch.int64)
    numbers = strings.number(*strings.outcomes(draft.tokens, nothing, nothing))
    weighted = stated * draft.log_q.exp().prod(dim=1)[:, None, None]
    mass.index_add_(0, numbers.flatten(), weighted.flatten())
    law = strings.completed(mass) - strings.target_law()
    return float(torch.cat([law.flatten(), (found - stated).flatten()]).abs().max())


def _massless_error(verifier: Verifier, p: Tensor) -> float:
    """The chance of a token that p never gives, where p = q and rounding alone brings a rejection about."""
    draft = _draft_of(p[None], torch.tensor([[1]]))
    rounded = Draft(draft.tokens, draft.logits, draft.log_sum_exp, draft.log_q + 0.5)
    boxes = VerdictCutter(verifier, _rows_of(p.expand(2, -1), 1), rounded, torch.tensor([1])).boxes()
    return float(boxes.volume[p[boxes.bonus] <= 0].sum())


def _draft_of(q: Tensor, blocks: Tensor) -> Draft:
    """``blocks [N, G]`` as if drawn from q ``[G, V]``."""
    rows = q.log().expand(len(blocks), -1, -1)
    log_q = rows.gather(-1, blocks[..., None])[..., 0]
    return Draft(blocks, rows, torch.zeros_like(log_q), log_q)


def _rows_of(p: Tensor, num: int) -> TargetRows:
    """Target rows p ``[G+1, V]`` of N requests."""
    sampling = batch_sampling([SamplingParams()] * num, p.shape[1], _CPU)
    return TargetRows(p.log().repeat(num, 1), torch.arange(num) * len(p), sampling)


def recorded_q(subject: Subject) -> Finding:
    """The q that a verifier reads is the q that the sampler draws from, also from rounded rows."""
    if isinstance(subject.build(3, 2, 0)[1].drafter, Proposer):
        return _recorded_certainty(subject)
    errors, rounded = [], []
    for temperature in (1.0, 0.5):
        target, parts = subject.build(3, 2, 0)
        blocks = possible_blocks(parts, parts.drafter.context.draft_length)
        chosen = Rows(target, parts, [[0, 2, 1]] * len(blocks), temperature=temperature).draft(blocks)
        draft = chosen.draft
        assert draft.logits is not None, "a sampled draft has rows"
        scaled = draft.logits.double() / temperature
        read = scaled.gather(-1, draft.tokens[..., None])[..., 0] - draft.log_sum_exp
        drawn = _token_chances(chosen, blocks)
        errors += [float((drawn - log_q.exp()).abs().max()) for log_q in (draft.log_q, read)]
        rounded.append(_rounded_error(draft.logits.flatten(0, 1).bfloat16(), temperature))
    exact, single = max(errors), max(rounded)
    return Finding(
        error=exact if single <= SINGLE else single,
        allowed=EXACT,
        holds=f"every token is drawn as often as its recorded q says (from bfloat16 rows to {single:.0e})",
        broken="tokens are drawn from another distribution than the q that is recorded (taken before the "
        "temperature, scored in another precision than sampled, or two draft rows that are one token): p/q "
        "corrects for the wrong q, and the output is biased",
    )


def _recorded_certainty(subject: Subject) -> Finding:
    """A proposal is recorded as what it is, certain: log q and log-sum-exp 0, and no rows."""
    target, parts = subject.build(3, 2, 0)
    after = texts(parts, [0, 2, 1])
    blocks = possible_blocks(parts, parts.drafter.context.draft_length).repeat(len(after), 1)
    draft = Rows(target, parts, after).draft(blocks).draft
    error = float(torch.cat([draft.log_q, draft.log_sum_exp]).abs().max())
    return Finding(
        error=error if draft.logits is None else 1.0,
        allowed=0.0,
        holds=f"proposals are recorded as certain, q = 1, and nothing is sampled ({len(after)} texts)",
        broken="a proposed token, which is certain, is recorded with another q than 1: p/q corrects for the "
        "wrong q, and the output is biased",
    )


def _token_chances(chosen: ChosenDraft, blocks: Tensor) -> Tensor:
    """How often each token of all ``blocks [N, G]`` is drawn after its prefix, by whichever rows give it."""
    drawn = chosen.intervals.diff(dim=-1)[..., 0]
    chances = []
    for k, tokens in enumerate(chosen.draft.tokens.unbind(1)):
        same = (blocks[:, None, :k] == blocks[:, :k]).all(dim=-1) & (tokens[:, None] == tokens)
        repeats = (blocks[:, None, : k + 1] == blocks[:, : k + 1]).all(dim=-1).sum(dim=1)
        chances.append(same.double() @ (drawn[:, k] / repeats))
    return torch.stack(chances, dim=1)


def _rounded_error(stored: Tensor, temperature: float) -> float:
    """How far drawn and recorded q of rows stored in bfloat16 are from what the stored values say."""
    sampling = batch_sampling([SamplingParams(temperature=temperature)] * len(stored), stored.shape[1], _CPU)
    drawn = sampler_edges(stored, sampling).diff(dim=-1)
    expected = (stored.double() / temperature).softmax(dim=-1)
    middle = torch.full((len(stored), 2), 0.5, dtype=torch.float64)
    record = sampler.draw_draft(stored, sampling, middle)
    recorded = record.log_q.double().exp() - expected.gather(1, record.tokens[:, None])[:, 0]
    return float(torch.cat([(drawn - expected).flatten(), recorded]).abs().max())
