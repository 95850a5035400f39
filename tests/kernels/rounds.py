"""Random rounds for the kernels, and what the float64 reference makes of them and of uniforms close by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from deepspec.kernels import reference, triton_rules
from deepspec.sampling import SamplingParams, batch_sampling, categorical, sampler
from deepspec.types import Draft, Sampling, TargetRows, Verdict

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Tokens a block of the vocabulary, in place of 4,096, so that a few tokens make several.
BLOCK = 16
#: float32 sums and exponentials against float64: decisions nearer than this to their threshold may differ.
MARGIN = 1e-5
RULES = ("token", "block", "delta")


@dataclass(frozen=True)
class Round:
    """A round's whole input; uniforms are ``accept [R, G]``, ``residual [R, 2]``, ``delta [R, G+1, 2]``."""

    target: TargetRows
    draft: Draft
    lengths: Tensor
    accept: Tensor
    residual: Tensor
    delta: Tensor

    def uniforms(self, rule: str) -> tuple[Tensor, ...]:
        """What a rule reads."""
        return (self.delta,) if rule == "delta" else (self.accept, self.residual)


@dataclass(frozen=True)
class Shape:
    """What a random round is like.

    Attributes:
        num, num_draft, vocab: R, G and V. dtype: of target and draft rows.
        params: a request's sampling, by turns. likeness: how far the target lies from the draft; 0 is p = q.
        missing: share of tokens that p, and others that q, never gives. certain: one-hot q without rows.
        packed: rows packed to the lengths, else 1 + G for each request.
    """

    num: int = 24
    num_draft: int = 2
    vocab: int = 27
    dtype: torch.dtype = torch.float32
    params: Sequence[dict[str, float]] = ({"temperature": 1.0}, {"temperature": 0.0}, {"temperature": 0.6})
    likeness: float = 1.0
    missing: float = 0.0
    certain: bool = False
    packed: bool = True


def random_round(shape: Shape, seed: int) -> Round:
    """A round whose drafts were drawn from the stored draft rows, as the core draws them."""
    generator = torch.Generator().manual_seed(seed)
    num, num_draft, vocab = shape.num, shape.num_draft, shape.vocab

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64).to(DEVICE)

    lengths = torch.randint(0, num_draft + 1, (num,), generator=generator)
    base = 2 * normal(num, num_draft + 1, vocab)
    target, drafted = base + shape.likeness * normal(num, num_draft + 1, vocab), base[:, :-1]
    if shape.missing:
        target = _without(target, shape.missing, generator)
        drafted = _without(drafted, shape.missing, generator)
    rows_of = lengths if shape.packed else torch.full_like(lengths, num_draft)
    kept = torch.arange(num_draft + 1) <= rows_of[:, None]
    starts = kept.sum(dim=1).cumsum(0) - kept.sum(dim=1)
    params = [SamplingParams(**shape.params[i % len(shape.params)]) for i in range(num)]
    sampling = batch_sampling(params, vocab, DEVICE)
    rows = TargetRows(target[kept].to(DEVICE, shape.dtype), starts.to(DEVICE), sampling)
    stored = drafted.to(DEVICE, shape.dtype)
    draft = _drawn(stored, sampling, uniform(num, num_draft, 2), certain=shape.certain)
    noise = uniform(num, num_draft), uniform(num, 2), uniform(num, num_draft + 1, 2)
    return Round(rows, draft, lengths.to(DEVICE), *noise)


def _without(logits: Tensor, share: float, generator: torch.Generator) -> Tensor:
    gone = torch.rand(logits.shape, generator=generator) < share
    gone[..., 0] &= gone[..., 1:].any(-1)  # something is left
    gone[..., 0] &= ~gone[..., 1:].all(-1)
    return logits.masked_fill(gone, float("-inf"))


def _drawn(stored: Tensor, sampling: Sampling, noise: Tensor, *, certain: bool) -> Draft:
    num, num_draft, _ = stored.shape
    plain = replace(sampling, top_k=None, top_p=None, min_p=None)
    columns = [sampler.draw_draft(stored[:, k], plain, noise[:, k]) for k in range(num_draft)]
    if not columns:
        none = stored.new_zeros((num, 0), dtype=torch.float32)
        return Draft(none.long(), stored if not certain else None, none, none)
    tokens, sums, log_q = (torch.stack(part, dim=1) for part in zip(*map(_fields, columns), strict=True))
    if certain:
        return Draft(tokens, None, torch.zeros_like(sums), torch.zeros_like(sums))
    return Draft(tokens, stored, sums, log_q)


def _fields(drawn: sampler.Drawn) -> tuple[Tensor, Tensor, Tensor]:
    return drawn.tokens, drawn.log_sum_exp, drawn.log_q


def by_kernels(rule: str, given: Round, block: int = BLOCK) -> Verdict:
    """The kernels' verdict, whose workspace was poisoned first."""
    num, num_draft = given.draft.tokens.shape
    room = triton_rules.Workspace.allocate(num, num_draft, given.target.logits.shape[1], DEVICE, block=block)
    for field in fields(room):  # what is not written shows
        values: Tensor = getattr(room, field.name)
        values.fill_(float("nan") if values.is_floating_point() else -1)
    decide = getattr(triton_rules, f"{rule}_rule")
    return decide(
        given.target, given.draft, given.lengths, *given.uniforms(rule), workspace=room, block=block
    )


def by_reference(rule: str, given: Round, block: int = BLOCK) -> Verdict:
    """The float64 reference's verdict."""
    rows = replace(given.target, logits=given.target.logits.double())
    stored = None if given.draft.logits is None else given.draft.logits.double()
    draft = replace(given.draft, logits=stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(categorical, "BLOCK", block)
        decide = getattr(reference, f"{rule}_rule")
        return decide(rows, draft, given.lengths, *given.uniforms(rule))


def nearby(given: Round) -> Iterator[Round]:
    """The round with uniforms and cut-offs moved by the margin, each way."""
    sampling = given.target.sampling
    for up, first, second in product((1 - MARGIN, 1 + MARGIN), (-MARGIN, MARGIN), (-MARGIN, MARGIN)):
        shift = torch.tensor([first, second], dtype=torch.float64, device=DEVICE)
        cuts: dict[str, Any] = {
            name: value * (up if name == "top_p" else 2 - up)
            for name in ("top_p", "min_p")
            if (value := getattr(sampling, name)) is not None
        }
        yield replace(
            given,
            target=replace(given.target, sampling=replace(sampling, **cuts)),
            accept=(given.accept * up).clamp(0, 1),
            residual=(given.residual + shift).clamp(0, 1),
            delta=(given.delta + shift).clamp(0, 1),
        )


def differing(rule: str, given: Round, block: int = BLOCK) -> tuple[list[int], list[int]]:
    """Requests on which kernels and reference differ, and those of them that no margin excuses."""
    found, wanted = _pairs(by_kernels(rule, given, block)), _pairs(by_reference(rule, given, block))
    different = [r for r in range(len(wanted)) if found[r] != wanted[r]]
    if not different:
        return [], []
    others = [_pairs(by_reference(rule, moved, block)) for moved in nearby(given)]
    return different, [r for r in different if all(found[r] != other[r] for other in others)]


def _pairs(verdict: Verdict) -> list[tuple[int, int]]:
    return list(zip(verdict.accepted.tolist(), verdict.bonus.tolist(), strict=True))
