"""Requests side by side, driven as the engine drives them, except that the caller chooses the drafted blocks.

Every block runs through the real ``run_draft``, and the real sampler draws each of its tokens: it is handed
the middle of the interval of uniforms that draw the token, whose width is the token's true probability,
whatever the sampler reports. What a model-free drafter proposes is certain: any uniform draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepspec.engine import draft as drafting
from deepspec.engine.draft import Drafted
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import Drafter
from deepspec.sampling import Drawn, SamplingParams, batch_sampling, sampler, scale
from deepspec.strategy import Parts
from deepspec.types import Anchors, Draft, Extension, Features, Load, Sampling, Span, TargetRows

_CPU = torch.device("cpu")
#: More than the steps of any toy request or two.
_MOST_TOKENS = 16
#: How well an interval's ends are known; a law adds up a few dozen of them.
RESOLUTION = 2.0**-48


def sampler_edges(logits: Tensor, sampling: Sampling) -> Tensor:
    """Where the sampler's draw from rows ``[R, V]`` changes, found by asking it: float64 ``[R, V+1]``.

    Uniforms in ``[edges[r, v], edges[r, v+1])`` draw token v of row r, which takes for granted only that a
    larger uniform never draws a smaller token.
    """
    num_rows, vocab = logits.shape
    repeated = logits.repeat_interleave(vocab - 1, dim=0)
    spread = replace(sampling, temperature=sampling.temperature.repeat_interleave(vocab - 1))
    token = torch.arange(vocab - 1).repeat(num_rows)

    def is_past(uniform: Tensor) -> Tensor:
        pairs = torch.stack([torch.full_like(uniform, 0.5), uniform.clamp(0, 1 - 2.0**-53)], dim=-1)
        drawn = sampler.draw_draft(repeated, spread, pairs).tokens
        return ((drawn > token) & (uniform >= 0)) | (uniform >= 1)

    guess = scale(logits, sampling).double().softmax(dim=-1).cumsum(dim=-1)[:, :-1].flatten()
    low, high = guess - RESOLUTION, guess + RESOLUTION
    low, high = torch.where(is_past(low), 0.0, low), torch.where(is_past(high), high, 1.0)
    while len(low) > 0 and float((high - low).max()) > 2 * RESOLUTION:
        middle = (low + high) / 2
        past = is_past(middle)
        low, high = torch.where(past, low, middle), torch.where(past, middle, high)
    inner = ((low + high) / 2).clamp(0, 1).view(num_rows, vocab - 1)
    return torch.cat([inner.new_zeros((num_rows, 1)), inner, inner.new_ones((num_rows, 1))], dim=1)


class _Choice:
    """Stands in for the sampler: draws wanted tokens ``[R]``, and keeps the intervals that draw them."""

    def __init__(self) -> None:
        self.intervals: list[Tensor] = []

    def __call__(self, logits: Tensor, sampling: Sampling, wanted: Tensor) -> Drawn:
        edges = sampler_edges(logits, sampling)
        pair = torch.stack([edges.gather(1, wanted[:, None] + end)[:, 0] for end in (0, 1)], dim=-1)
        self.intervals.append(pair)
        middle = pair.mean(dim=-1)
        return sampler.draw_draft(
            logits, sampling, torch.stack([torch.full_like(middle, 0.5), middle], dim=-1)
        )


@dataclass(frozen=True)
class ChosenDraft:
    """A draft of chosen blocks.

    Attributes:
        drafted: as :func:`run_draft` returned it.
        intervals: float64 ``[N, G, 2]``, the sampler's uniforms that draw each token.
    """

    drafted: Drafted
    intervals: Tensor

    @property
    def weight(self) -> Tensor:
        """The probability that the sampler draws the block: float64 ``[N]``."""
        return (self.intervals[..., 1] - self.intervals[..., 0]).prod(dim=-1)

    @property
    def draft(self) -> Draft:
        """The draft alone."""
        return self.drafted.draft


class Rows:
    """N requests in a slot each, from contexts of any length whose last token is the anchor."""

    def __init__(
        self,
        target: ToyTarget,
        parts: Parts,
        contexts: Sequence[Sequence[int]],
        *,
        num_rounds: int = 1,
        temperature: float = 1.0,
    ) -> None:
        self.num = num = len(contexts)
        room = max(map(len, contexts)) + (num_rounds + 1) * (parts.drafter.context.draft_length + 1)
        self.target, self.parts = target, replace(parts, drafter=copy(parts.drafter))
        self.parts.drafter.allocate(num, room, target.dtype, _CPU)
        self.sampling = batch_sampling(
            [SamplingParams(temperature=temperature)] * num, target.info.vocab_size, _CPU
        )
        self._cache = target.new_slots(num, room)
        self._layers = parts.drafter.target_layers
        self._every = torch.arange(num)
        self._tokens = torch.zeros((num, room), dtype=torch.int64)
        self._start(contexts)

    def restart(self, contexts: Sequence[Sequence[int]]) -> None:
        """End the requests and begin others in their slots."""
        for slot in range(len(contexts)):
            self.parts.drafter.release(slot)
        self._start(contexts)

    def _start(self, contexts: Sequence[Sequence[int]]) -> None:
        for row, context in enumerate(contexts):
            self._tokens[row, : len(context)] = torch.tensor(context)
        self._computed = torch.zeros_like(self._every)
        counts = torch.tensor([len(context) - 1 for context in contexts])
        if int(counts.max()) > 0:
            self._extend(counts, self._forward(counts))

    def draft(self, blocks: Tensor) -> ChosenDraft:
        """Draft ``blocks [N, G]`` (ids of the draft vocabulary); a model-free drafter drafts its own.

        Raises PluginError for a proposal that is none.
        """
        certain = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(*blocks.shape, 2)
        if blocks.shape[1] == 0:
            empty = torch.zeros((len(blocks), 0), dtype=torch.float64)
            none = torch.zeros_like(self._every)
            return ChosenDraft(Drafted(Draft(blocks, None, empty, empty), none, None), certain)
        choice = _Choice()
        start = self._anchors(blocks.shape[1])
        drafted = drafting.run_draft(self.parts, start, self.sampling, blocks, choice)
        drafting.check_lengths(self.parts, drafted.lengths.tolist())
        return ChosenDraft(drafted, torch.stack(choice.intervals, dim=1) if choice.intervals else certain)

    def hidden(self, labels: Tensor) -> Tensor:
        """What the drafter's steps give, ``[N, G, H]``, when ``labels [N, G]`` are what is drawn."""
        drafter = self.parts.drafter
        assert isinstance(drafter, Drafter), "a proposer has no hidden states"
        start = self._anchors(labels.shape[1])
        state = drafter.begin(start)
        whole = drafter.parallel_hidden(state)
        previous = torch.cat([start.tokens[:, None], labels[:, :-1]], dim=1)
        steps = [drafter.step(state, k, column) for k, column in enumerate(previous.unbind(1))]
        return torch.stack(steps, dim=1) if whole is None else whole

    def verify_rows(self, draft: Draft) -> TargetRows:
        """The target's forward over anchor and draft, 1 + G rows for every request."""
        num, num_draft = draft.tokens.shape
        for k in range(num_draft):
            self._tokens[self._every, self._computed + 1 + k] = draft.tokens[:, k]
        self._features = self._forward(torch.full((num,), 1 + num_draft))
        return TargetRows(
            self.target.logits(self._features.last_hidden), self._every * (1 + num_draft), self.sampling
        )

    def commit(self, draft: Draft, accepted: Tensor, bonus: Tensor) -> None:
        """End the round of :meth:`verify_rows`: keep ``accepted [N]`` tokens, close with ``bonus [N]``."""
        width = 1 + draft.tokens.shape[1]
        self._tokens[self._every, self._computed + 1 + accepted] = bonus
        kept = (torch.arange(width) <= accepted[:, None]).flatten()
        self._extend(1 + accepted, Features(self._features.tapped[kept], self._features.last_hidden[kept]))

    def accept_one(self, tokens: Tensor) -> None:
        """End a round of G drafted tokens, of which the first was ``tokens[:, 0]`` and kept; ``[N, 2]``."""
        wrong = tokens[:, :1].expand(-1, self.parts.drafter.context.draft_length)
        nothing = torch.zeros(wrong.shape)
        draft = Draft(wrong, None, nothing, nothing)
        self.verify_rows(draft)
        self.commit(draft, torch.ones_like(self._every), tokens[:, 1])

    def _anchors(self, num_draft: int) -> Anchors:
        return Anchors(
            slots=self._every,
            tokens=self._tokens[self._every, self._computed],
            positions=self._computed.clone(),
            spans=self._spans(torch.ones_like(self._computed)),
            num_draft=num_draft,
        )

    def _forward(self, counts: Tensor) -> Features:
        """The next ``counts [N]`` tokens of each request through the target."""
        rows = self._every.repeat_interleave(counts)
        return self.target.forward(
            self._tokens[rows, self._positions(counts)], self._spans(counts), self._cache, self._layers
        )

    def _extend(self, counts: Tensor, features: Features) -> None:
        """Give the drafter the next ``counts [N]`` tokens, now committed."""
        rows, positions = self._every.repeat_interleave(counts), self._positions(counts)
        self.parts.drafter.extend(
            Extension(
                slots=self._every[counts > 0],
                spans=self._spans(counts),
                rows=rows,
                positions=positions,
                tokens=self._tokens[rows, positions],
                next_tokens=self._tokens[rows, positions + 1],
                features=features,
            )
        )
        self._computed += counts

    def _spans(self, counts: Tensor) -> tuple[Span, ...]:
        """The next ``counts [N]`` tokens of each request, host side."""
        starts = zip(self._computed.tolist(), counts.tolist(), strict=True)
        return tuple(Span(slot, start, n) for slot, (start, n) in enumerate(starts) if n > 0)

    def _positions(self, counts: Tensor) -> Tensor:
        first = self._computed - (counts.cumsum(0) - counts)
        return first.repeat_interleave(counts) + torch.arange(int(counts.sum()))


def toy_load(num_requests: int) -> Load:
    """A step that takes a fixed time, and half as long again for each of its tokens.

    A policy that weighs tokens against this curve verifies some of them and not others. The past is one and
    the same: a law that is right after every past is right.
    """
    tokens = torch.arange(1, _MOST_TOKENS + 1, dtype=torch.float64)
    return Load(
        num_requests,
        steps_per_second=100 / (1 + tokens / 2),
        past_survival=(0.8, 0.7, 0.5),
        past_verified=(0.8, 0.5, 0.2),
        past_accepted=(0.7, 0.3, 0.1),
        earlier_survival=torch.tensor([[0.9, 0.4, 0.1]], dtype=torch.float64),
    )


def choose_lengths(parts: Parts, drafts: Sequence[Drafted]) -> Tensor:
    """Verify lengths of every combination of the requests' rows: int64 ``[N_1, ..., N_R, R]``.

    Each of ``drafts`` holds one request's N rows; the policy sees one row of each at a time.
    """
    load = toy_load(len(drafts))
    distinct = [_distinct(drafted) for drafted in drafts]
    sizes = [len(keys) for keys, _ in distinct]
    lengths = torch.empty((*sizes, len(drafts)), dtype=torch.int64)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes)).tolist():
        rows = [keys[i] for (keys, _), i in zip(distinct, place, strict=True)]
        joined = _joined(drafts, rows)
        survival = drafting.draft_survival(parts, joined, _CPU)
        lengths[tuple(place)] = parts.policy.lengths(survival, joined.lengths, load)
    for axis, (_, inverse) in enumerate(distinct):
        lengths = lengths.index_select(axis, inverse)
    return lengths


def _distinct(drafted: Drafted) -> tuple[list[int], Tensor]:
    """One row for each distinct vector of confidences and draft length, and which of them every row has."""
    shown = drafted.lengths[:, None].double()
    if drafted.confidence is not None:
        shown = torch.cat([shown, drafted.confidence.double()], dim=1)
    values, inverse = torch.unique(shown, dim=0, return_inverse=True)
    first = torch.full((len(values),), len(inverse)).scatter_reduce(
        0, inverse, torch.arange(len(inverse)), "amin"
    )
    return first.tolist(), inverse


def _joined(drafts: Sequence[Drafted], rows: Sequence[int]) -> Drafted:
    """One row of each request as a batch."""

    def pick(part: str) -> Tensor:
        picked = [getattr(d.draft, part)[row] for d, row in zip(drafts, rows, strict=True)]
        return torch.stack(picked)

    lengths = torch.stack([d.lengths[row] for d, row in zip(drafts, rows, strict=True)])
    confidences = [d.confidence[row] for d, row in zip(drafts, rows, strict=True) if d.confidence is not None]
    draft = Draft(pick("tokens"), None, pick("log_sum_exp"), pick("log_q"))
    return Drafted(draft, lengths, torch.stack(confidences) if confidences else None)
