"""The law of two rounds' output, summed over every drafted block and every outcome, beside the target's own.

Both laws are float64 vectors over the strings of 2 (G + 1) tokens, which is what two rounds emit
at most; a string that ends sooner is completed with the target's own law.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.exact.rows import ChosenDraft, Rows, choose_lengths, toy_load
from deepspec.exact.toy import ToyTarget
from deepspec.interfaces import Proposer
from deepspec.strategy import Parts


@dataclass(frozen=True)
class Laws:
    """The law that was emitted and the target's, both over the same strings.

    Attributes:
        emitted, target: float64 of one shape.
        lengths: verify lengths that occurred.
    """

    emitted: Tensor
    target: Tensor
    lengths: tuple[int, ...]

    @property
    def error(self) -> float:
        """The total variation: how far the probability of any event may be off."""
        return float((self.emitted - self.target).abs().sum() / 2)


class Strings:
    """Every string of up to ``longest`` tokens, numbered level by level (the empty one is 0), with its law.

    ``law`` gives the distributions ``[N, V]`` of the token after strings ``[N, length]``.
    """

    def __init__(self, vocab: int, longest: int, law: Callable[[Tensor], Tensor]) -> None:
        self.vocab = vocab
        self._offsets = [sum(vocab**shorter for shorter in range(level)) for level in range(longest + 2)]
        self._next = [law(all_blocks(vocab, length)) for length in range(longest)]

    @classmethod
    def after(
        cls, target: ToyTarget, prompt: Sequence[int], longest: int, temperature: float = 1.0
    ) -> Strings:
        """The strings that ``target`` may write after ``prompt``."""

        def law(strings: Tensor) -> Tensor:
            contexts = torch.cat([torch.tensor(prompt).expand(len(strings), -1), strings], dim=1)
            return target.law(contexts, temperature)

        return cls(target.info.vocab_size, longest, law)

    def __len__(self) -> int:
        return self._offsets[-1]

    def number(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """The numbers of strings given as base-V numbers of ``lengths`` digits."""
        return codes + torch.tensor(self._offsets)[lengths]

    def outcomes(self, tokens: Tensor, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and lengths ``[N, G+1, V]`` of strings ``[N]`` after each outcome of a round."""
        prefixes = [codes]
        for column in tokens.unbind(1):
            prefixes.append(prefixes[-1] * self.vocab + column)
        ends = torch.stack(prefixes, dim=1)[..., None] * self.vocab + torch.arange(self.vocab)
        steps = torch.arange(1, len(prefixes) + 1)
        return ends, (lengths[:, None] + steps)[..., None].expand_as(ends)

    def completed(self, mass: Tensor) -> Tensor:
        """Mass ``[strings, ...]`` moved to the longest strings by the target's law: ``[V**longest, ...]``."""
        level = mass[:1]
        for length, law in enumerate(self._next):
            spread = level[:, None] * law.view(*law.shape, *[1] * (mass.ndim - 1))
            level = spread.flatten(0, 1) + mass[self._offsets[length + 1] : self._offsets[length + 2]]
        return level

    def target_law(self) -> Tensor:
        """The target's own law of the longest strings."""
        start = torch.zeros(len(self), dtype=torch.float64)
        start[0] = 1.0
        return self.completed(start)


def all_blocks(vocab: int, length: int) -> Tensor:
    """Every block of ``length`` tokens in order: int64 ``[V**length, length]``."""
    codes = torch.arange(vocab**length)
    return codes[:, None] // vocab ** torch.arange(length - 1, -1, -1) % vocab


def possible_blocks(parts: Parts, num_draft: int) -> Tensor:
    """Every block that may be drafted after one text: int64 ``[N, G]``.

    Of a model-free drafter there is one, whose tokens are filled in as it proposes them.
    """
    if isinstance(parts.drafter, Proposer):
        return torch.zeros((1, num_draft), dtype=torch.int64)
    return all_blocks(parts.drafter.readout().weight.shape[0], num_draft)


@dataclass(frozen=True)
class _Round:
    """A round of N rows.

    Attributes:
        chosen: the draft. outcome: float64 ``[G+1, N, G+1, V]``, by verify length, accepted count and bonus.
    """

    chosen: ChosenDraft
    outcome: Tensor

    @classmethod
    def of(cls, rows: Rows, blocks: Tensor) -> _Round:
        chosen = rows.draft(blocks)
        target = rows.verify_rows(chosen.draft)
        each = (torch.full((len(blocks),), length) for length in range(blocks.shape[1] + 1))
        verifier = rows.parts.verifier
        return cls(chosen, torch.stack([verifier.outcome(target, chosen.draft, lengths) for lengths in each]))


class _TwoRounds:
    """Both rounds of one request, for every block and every outcome that some verify length gives.

    Rows of the second round are numbered ``entry * blocks + block``, an entry being what the first one did.
    """

    def __init__(
        self, target: ToyTarget, parts: Parts, prompt: Sequence[int], num_draft: int, temperature: float
    ) -> None:
        blocks = possible_blocks(parts, num_draft)
        first = Rows(target, parts, [prompt] * len(blocks), temperature=temperature)
        self.first = _Round.of(first, blocks)
        reachable = self.first.outcome.amax(dim=0) * self.first.chosen.weight[:, None, None]
        self.block, self.accepted, self.bonus = reachable.nonzero(as_tuple=True)
        every = torch.arange(len(self.block)).repeat_interleave(len(blocks))
        self.entry = every
        second = Rows(target, parts, [prompt] * len(every), num_rounds=2, temperature=temperature)
        again = second.draft(blocks[self.block[every]])
        second.verify_rows(again.draft)
        second.commit(again.draft, self.accepted[every], self.bonus[every])
        self.second = _Round.of(second, blocks.repeat(len(self.block), 1))
        self.strings = Strings.after(target, prompt, 2 * (num_draft + 1), temperature)
        nothing = torch.zeros(len(blocks), dtype=torch.int64)
        codes, ends = self.strings.outcomes(self.first.chosen.draft.tokens, nothing, nothing)
        where = (self.block[every], self.accepted[every], self.bonus[every])
        ended = self.strings.outcomes(self.second.chosen.draft.tokens, codes[where], ends[where])
        #: Which string each outcome of the second round has emitted by its end: ``[N, G+1, V]``.
        self.numbers = self.strings.number(*ended)

    def second_mass(self) -> Tensor:
        """The second round's law over strings, by verify length and row: float64 ``[G+1, N, strings]``."""
        shape = (*self.second.outcome.shape[:2], len(self.strings))
        numbers = self.numbers.flatten(1).expand(len(self.second.outcome), -1, -1)
        return torch.zeros(shape, dtype=torch.float64).scatter_add_(
            2, numbers, self.second.outcome.flatten(2)
        )

    def first_probability(self, lengths: Tensor) -> Tensor:
        """The probability of what came before each row of the second round, verified to ``lengths``."""
        round_, entry = self.first, self.entry
        block, accepted, bonus = self.block[entry], self.accepted[entry], self.bonus[entry]
        while block.ndim < lengths.ndim:
            block, accepted, bonus = block[:, None], accepted[:, None], bonus[:, None]
        return round_.outcome[lengths, block, accepted, bonus] * round_.chosen.weight[block]


def one_request(target: ToyTarget, parts: Parts, prompt: Sequence[int], temperature: float = 1.0) -> Laws:
    """The law of two rounds of a request that is alone."""
    num_draft = parts.policy.draft_length(toy_load(1))
    both = _TwoRounds(target, parts, prompt, num_draft, temperature)
    first, second = (choose_lengths(parts, [r.chosen.drafted])[:, 0] for r in (both.first, both.second))
    weight = both.first_probability(first[both.block[both.entry]]) * both.second.chosen.weight
    outcome = both.second.outcome[second, torch.arange(len(second))] * weight[:, None, None]
    mass = torch.zeros(len(both.strings), dtype=torch.float64)
    mass.index_add_(0, both.numbers.flatten(), outcome.flatten())
    seen = torch.cat([first, second]).unique().tolist()
    return Laws(both.strings.completed(mass), both.strings.target_law(), tuple(seen))


def two_requests(target: ToyTarget, parts: Parts, prompts: tuple[Sequence[int], Sequence[int]]) -> Laws:
    """The joint law of two rounds of two requests that share every step; the target's is the product."""
    num_draft = parts.policy.draft_length(toy_load(2))
    a, b = (_TwoRounds(target, parts, prompt, num_draft, 1.0) for prompt in prompts)
    first = choose_lengths(parts, [a.first.chosen.drafted, b.first.chosen.drafted])
    second = choose_lengths(parts, [a.second.chosen.drafted, b.second.chosen.drafted])
    of_rows = first[a.block[a.entry]][:, b.block[b.entry]]
    weight = a.first_probability(of_rows[..., 0]) * b.first_probability(of_rows[..., 1].T).T
    weight = weight * a.second.chosen.weight[:, None] * b.second.chosen.weight
    ends_a, ends_b = a.second_mass(), b.second_mass()
    mass = torch.zeros((len(a.strings), len(b.strings)), dtype=torch.float64)
    for i, j in itertools.product(range(num_draft + 1), repeat=2):
        chosen = ((second[..., 0] == i) & (second[..., 1] == j)).double()
        mass += ends_a[i].T @ (weight * chosen) @ ends_b[j]
    emitted = b.strings.completed(a.strings.completed(mass).T).T
    target_law = torch.outer(a.strings.target_law(), b.strings.target_law())
    seen = torch.cat([first.flatten(), second.flatten()]).unique().tolist()
    return Laws(emitted, target_law, tuple(seen))
