"""Where randomness goes: decisions integrated over the very uniforms that the engine hands out.

A verifier compares uniforms with numbers, so over the unit cube its verdict is constant on boxes. They are
found by asking ``verify``, which ties it to its ``outcome()``. Two rounds are integrated together: a uniform
that the engine hands out twice has one value, and the boxes must agree on it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepspec.engine import noise as engine_noise
from deepspec.errors import DeepSpecError
from deepspec.exact.law import Laws, Strings, possible_blocks
from deepspec.exact.rows import Rows, choose_lengths, toy_load
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import RoundUniforms, Verifier
from deepspec.strategy import Parts
from deepspec.types import Draft, TargetRows

_PROBES = torch.tensor([0.0, 0.21, 0.5, 0.79, 1.0], dtype=torch.float64)
_MOST_BOXES = 4096
_MOST_LOOKS = 64
#: Cuts nearer than this are one.
_NEAR = 1e-14
_SEED = 0x5EED


class NoBoxesError(DeepSpecError):
    """A verdict that is not constant on few boxes, so that it cannot be integrated."""


@dataclass(frozen=True)
class Boxes:
    """The unit cube of D uniforms cut where verdicts change.

    Attributes:
        cases: int64 ``[B]``, the case each box belongs to. bounds: float64 ``[B, D, 2]``.
        accepted, bonus: int64 ``[B]``, the verdict inside.
    """

    cases: Tensor
    bounds: Tensor
    accepted: Tensor
    bonus: Tensor

    @property
    def volume(self) -> Tensor:
        """Float64 ``[B]``."""
        return (self.bounds[..., 1] - self.bounds[..., 0]).prod(dim=-1)

    def law(self, like: Tensor) -> Tensor:
        """The law that the boxes add up to, laid out as ``Verifier.outcome``, which gave ``like``."""
        where = (self.cases, self.accepted, self.bonus)
        return torch.zeros_like(like).index_put_(where, self.volume, accumulate=True)


class VerdictCutter:
    """Asks a verifier about N cases (requests with their drafts and lengths) and cuts the cube for each."""

    def __init__(self, verifier: Verifier, target: TargetRows, draft: Draft, lengths: Tensor) -> None:
        self.verifier, self.target, self.draft, self.lengths = verifier, target, draft, lengths
        self.num_draft = draft.tokens.shape[1]
        self.size = num_uniforms(verifier, self.num_draft)
        self._breaks: list[list[list[float]]] = [[[] for _ in range(self.size)] for _ in lengths]

    def boxes(self) -> Boxes:
        """Cut until nothing new shows; raises NoBoxesError when that takes too many boxes."""
        for _ in range(_MOST_LOOKS):
            new = [self._cut(axis) for axis in range(self.size)]
            if not any(new):
                break
        else:
            raise NoBoxesError("its verdict changes at ever new values of the uniforms")
        cases, bounds = [], []
        for case, breaks in enumerate(self._breaks):
            cells = [list(itertools.pairwise([0.0, *found, 1.0])) for found in breaks]
            cases += [case] * len(every := list(itertools.product(*cells)))
            bounds += every
        edges = torch.tensor(bounds, dtype=torch.float64).view(len(cases), self.size, 2)
        accepted, bonus = self._ask(torch.tensor(cases), edges.mean(dim=-1))
        return Boxes(torch.tensor(cases), edges, accepted, bonus)

    def _cut(self, axis: int) -> bool:
        """Look along one axis, from the middle of every known cell of the others; whether a cut is new."""
        lines = [(case, line) for case in range(len(self._breaks)) for line in self._lines(case, axis)]
        if len(lines) > _MOST_BOXES * len(self._breaks):
            raise NoBoxesError(f"its verdict changes on more than {_MOST_BOXES} boxes of the uniforms")
        pairs = [
            (number, *cell)
            for number, (case, _) in enumerate(lines)
            for cell in itertools.pairwise([0.0, *self._breaks[case][axis], 1.0])
        ]
        of_line = torch.tensor([number for number, _, _ in pairs])
        low, high = torch.tensor([cell for _, *cell in pairs], dtype=torch.float64).unbind(1)
        cases = torch.tensor([case for case, _ in lines])[of_line]
        points = torch.tensor([line for _, line in lines], dtype=torch.float64).view(-1, self.size)[of_line]
        low, high = low + 2 * _NEAR, high - 2 * _NEAR  # a cut is known to a few rounding errors
        probes = low[:, None] + (high - low)[:, None] * _PROBES
        verdicts = torch.stack(
            [self._code(cases, points, axis, column) for column in probes.unbind(1)], dim=1
        )
        where, after = self._first_of_each(cases, probes, verdicts[:, 1:] != verdicts[:, :-1])
        if len(where) == 0:
            return False
        found = self._bisect(
            cases[where], points[where], axis, probes[where, after], probes[where, after + 1]
        )
        new = [self._add(case, axis, at) for case, at in zip(cases[where].tolist(), found, strict=True)]
        return any(new)

    @staticmethod
    def _first_of_each(cases: Tensor, probes: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        """One of a case's lines that change between the same probes: the next look finds what others add."""
        where, after = changes.nonzero(as_tuple=True)
        places = zip(cases[where].tolist(), probes[where, after].tolist(), strict=True)
        first = {place: number for number, place in reversed(list(enumerate(places)))}
        chosen = torch.tensor(list(first.values()), dtype=torch.int64)
        return where[chosen], after[chosen]

    def _lines(self, case: int, axis: int) -> Iterator[tuple[float, ...]]:
        middles = [
            [0.5] if other == axis else [(a + b) / 2 for a, b in itertools.pairwise([0.0, *found, 1.0])]
            for other, found in enumerate(self._breaks[case])
        ]
        return itertools.product(*middles)

    def _bisect(self, cases: Tensor, points: Tensor, axis: int, low: Tensor, high: Tensor) -> list[float]:
        """Where the verdict first differs from that at ``low``."""
        before = self._code(cases, points, axis, low)
        while float((high - low).max()) > 2.0**-52:
            middle = (low + high) / 2
            same = self._code(cases, points, axis, middle) == before
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        return high.tolist()

    def _add(self, case: int, axis: int, at: float) -> bool:
        breaks = self._breaks[case][axis]
        if any(abs(at - known) < _NEAR for known in [0.0, *breaks, 1.0]):
            return False
        breaks.append(at)
        breaks.sort()
        return True

    def _code(self, cases: Tensor, points: Tensor, axis: int, values: Tensor) -> Tensor:
        """Verdicts as one number each, with ``values`` on one axis."""
        moved = points.clone()
        moved[:, axis] = values
        accepted, bonus = self._ask(cases, moved)
        return accepted * self.target.logits.shape[-1] + bonus

    def _ask(self, cases: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        rows = (self.target.starts[cases][:, None] + torch.arange(self.num_draft + 1)).flatten()
        sampling = replace(self.target.sampling, temperature=self.target.sampling.temperature[cases])
        starts = torch.arange(len(cases)) * (self.num_draft + 1)
        draft = self.draft
        picked = Draft(
            tokens=draft.tokens[cases],
            logits=None if draft.logits is None else draft.logits[cases],
            log_sum_exp=draft.log_sum_exp[cases],
            log_q=draft.log_q[cases],
        )
        verdict = self.verifier.verify(
            TargetRows(self.target.logits[rows], starts, sampling),
            picked,
            self.lengths[cases],
            _as_uniforms(points, self.num_draft, self.verifier.streams),
        )
        return verdict.accepted, verdict.bonus


def num_uniforms(verifier: Verifier, num_draft: int) -> int:
    """How many uniforms a verifier is handed for one request's round."""
    sizes = {"accept": num_draft, "residual": 2, "delta": 2 * (num_draft + 1)}
    return sum(size for stream, size in sizes.items() if stream in verifier.streams)


def _as_uniforms(points: Tensor, num_draft: int, streams: frozenset[str]) -> RoundUniforms:
    """Points ``[R, D]`` as the uniforms of a round; the inverse of :func:`_flat`."""
    sizes = [
        num_draft if "accept" in streams else 0,
        2 if "residual" in streams else 0,
        2 * (num_draft + 1) if "delta" in streams else 0,
    ]
    accept, residual, delta = points.split(sizes, dim=1)
    return RoundUniforms(
        accept, residual, delta.unflatten(1, (-1, 2)) if delta.shape[1] else delta[..., None]
    )


def handed_out(parts: Parts, anchor: int, num_draft: int) -> list[float]:
    """What the engine hands one request at ``anchor``: each draft token's uniform, then the verifier's.

    The second of a pair chooses among up to 4,096 tokens; the draft's first is not read with so few.
    """
    draft, rest = engine_noise.round_noise(
        [_SEED], [anchor], num_draft, parts.verifier.streams, torch.device("cpu")
    )
    return torch.cat([draft[0, :, 1], rest.accept[0], rest.residual[0], rest.delta[0].flatten()]).tolist()


def shared_noise(target: ToyTarget, parts: Parts, prompt: Sequence[int]) -> Laws:
    """The law of two rounds when every uniform has the value that the engine gives it, in both alike."""
    num_draft = parts.policy.draft_length(toy_load(1))
    vocab = target.info.vocab_size
    strings = Strings.after(target, prompt, 2 * (num_draft + 1))
    [first] = _rounds(target, parts, [prompt], num_draft)
    ended = sorted({(*map(int, tokens),) for tokens in first.emitted})
    seconds = _rounds(target, parts, [[*prompt, *tokens] for tokens in ended], num_draft)
    anchor = len(prompt) - 1
    values = handed_out(parts, anchor, num_draft)
    mass = torch.zeros(len(strings), dtype=torch.float64)
    for tokens, second in zip(ended, seconds, strict=True):
        mine = torch.tensor([emitted == tokens for emitted in first.emitted])
        keys = [*values, *handed_out(parts, anchor + len(tokens), num_draft)]
        volume = _joint_volume(first.bounds[mine], second.bounds, keys)
        for part, emitted in zip(volume.sum(dim=0).tolist(), second.emitted, strict=True):
            whole = (*tokens, *emitted)
            code = sum(token * vocab**place for place, token in enumerate(reversed(whole)))
            mass[strings.number(torch.tensor(code), torch.tensor(len(whole)))] += part
    return Laws(strings.completed(mass), strings.target_law(), ())


@dataclass(frozen=True)
class _CutRound:
    """All boxes of one request's round: bounds ``[B, draft + verifier uniforms, 2]`` and what each emits."""

    bounds: Tensor
    emitted: list[tuple[int, ...]]


def _rounds(
    target: ToyTarget, parts: Parts, contexts: Sequence[Sequence[int]], num_draft: int
) -> list[_CutRound]:
    blocks = possible_blocks(parts, num_draft)
    rows = Rows(target, parts, [context for context in contexts for _ in blocks])
    chosen = rows.draft(blocks.repeat(len(contexts), 1))
    lengths = choose_lengths(parts, [chosen.drafted])[:, 0]
    boxes = VerdictCutter(parts.verifier, rows.verify_rows(chosen.draft), chosen.draft, lengths).boxes()
    bounds = torch.cat([chosen.intervals[boxes.cases], boxes.bounds], dim=1)
    tokens = chosen.draft.tokens[boxes.cases].tolist()
    emitted = [
        (*drafted[:accepted], bonus)
        for drafted, accepted, bonus in zip(
            tokens, boxes.accepted.tolist(), boxes.bonus.tolist(), strict=True
        )
    ]
    of_context = boxes.cases // len(blocks)
    return [
        _CutRound(bounds[of_context == i], [emitted[j] for j in (of_context == i).nonzero()[:, 0].tolist()])
        for i in range(len(contexts))
    ]


def _joint_volume(first: Tensor, second: Tensor, keys: Sequence[float]) -> Tensor:
    """Volume ``[B1, B2]`` of each pair of boxes; uniforms of equal key are one uniform."""
    count = len(first), len(second)
    pairs = torch.cat(
        [first[:, None].expand(-1, count[1], -1, -1), second.expand(count[0], -1, -1, -1)], dim=2
    )
    volume = torch.ones(count, dtype=torch.float64)
    for key in dict.fromkeys(keys):
        same = torch.tensor([other == key for other in keys])
        low, high = pairs[:, :, same, 0].amax(dim=-1), pairs[:, :, same, 1].amin(dim=-1)
        volume *= (high - low).clamp(min=0.0)
    return volume
