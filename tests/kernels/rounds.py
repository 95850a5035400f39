"""Rounds in every regime that verification meets, and how near each request is to another decision.

The margin of a request is the smallest distance, in float64, between what it was decided by and where the
decision turns: relative for acceptance, of the whole mass for a draw and for top-p, in log-weight for min-p.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepspec.kernels import reference
from deepspec.sampling import SamplingParams, batch_sampling, categorical, draw_draft, scale
from deepspec.types import Draft, Sampling, TargetRows, Verdict

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEG_INF = float("-inf")
TEMPERATURES = (1.0, 0.0, 0.7, 1.3)
TRUNCATIONS = (
    {},
    {"top_k": 3},
    {"top_p": 0.8},
    {},
    {"min_p": 0.07},
    {"top_k": 5, "top_p": 0.7, "min_p": 0.02},
    {},
)


@dataclass(frozen=True)
class Round:
    """One round's input; ``noise [R, G+1, 2]`` is the delta rule's."""

    target: TargetRows
    draft: Draft
    lengths: Tensor
    accept: Tensor
    residual: Tensor
    noise: Tensor

    def exact(self) -> Round:
        """The same in float64, for the reference: the stored values, and their log-sum-exp anew."""
        target, draft = self.target, self.draft
        target = replace(target, logits=target.logits.double())
        if draft.logits is None:
            return replace(self, target=target)
        requests = torch.arange(len(self.lengths)).repeat_interleave(draft.tokens.shape[1])
        rows = scale(draft.logits.double().flatten(0, 1), target.sampling, requests).view(draft.logits.shape)
        total = rows.logsumexp(-1)
        log_q = rows.gather(-1, draft.tokens[..., None])[..., 0] - total
        return replace(self, target=target, draft=Draft(draft.tokens, draft.logits.double(), total, log_q))

    def only(self, r: int) -> Round:
        """Request r alone."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[r : r + 1]

        first, length = int(self.target.starts[r]), int(self.lengths[r])
        old = self.target.sampling
        parts = {name: pick(getattr(old, name)) for name in ("temperature", "top_k", "top_p", "min_p")}
        target = TargetRows(
            self.target.logits[first : first + length + 1], torch.tensor([0]), replace(old, **parts)
        )
        draft = Draft(*(pick(getattr(self.draft, n)) for n in ("tokens", "logits", "log_sum_exp", "log_q")))
        return Round(
            target, draft, *(pick(v) for v in (self.lengths, self.accept, self.residual, self.noise))
        )


def make_round(
    seed: int,
    *,
    num_draft: int,
    vocab: int,
    dtype: torch.dtype,
    num: int = 24,
    truncate: bool = False,
    one_hot: bool = False,
) -> Round:
    """Requests of mixed lengths, temperatures and regimes; some noise is exactly 0, some just under 1."""
    generator = torch.Generator().manual_seed(seed)
    p = 2 * torch.randn(num, num_draft + 1, vocab, generator=generator)
    q = 2 * torch.randn(num, num_draft, vocab, generator=generator)
    odd = torch.arange(vocab) % 2 == 1
    for r in range(num):
        regime = (r + seed) % 7 if vocab > 1 else 0
        if regime in (1, 2):  # near each other, and equal
            q[r] = p[r, :-1] + (0.5 * torch.randn(q[r].shape, generator=generator) if regime == 1 else 0)
        elif regime == 3:  # disjoint
            p[r, :, odd], q[r, :, ~odd] = NEG_INF, NEG_INF
        elif regime == 4:  # a draft vocabulary
            q[r, :, (vocab + 1) // 2 :] = NEG_INF
        elif regime == 5:
            p[r, :, : vocab // 3] = NEG_INF
        elif regime == 6:  # some positions equal, in the block rule's way
            q[r, 1:] = p[r, 1:-1]
    lengths = torch.randint(0, num_draft + 1, (num,), generator=generator)
    inside = torch.arange(num_draft + 1) <= lengths[:, None]
    params = [
        SamplingParams(temperature=TEMPERATURES[r % 4], **(TRUNCATIONS[r % 7] if truncate else {}))
        for r in range(num)
    ]
    sampling = batch_sampling(params, vocab, torch.device("cpu"))
    uniforms = torch.rand(num, 3 * num_draft + 4, 2, generator=generator, dtype=torch.float64)
    uniforms[torch.rand(uniforms.shape, generator=generator) < 0.02] = 0.0
    uniforms[torch.rand(uniforms.shape, generator=generator) < 0.005] = 1 - 2.0**-53
    stored = q.to(dtype)
    drawn = [draw_draft(stored[:, k], sampling, uniforms[:, k]) for k in range(num_draft)]
    columns = [
        torch.stack([getattr(d, name) for d in drawn], 1) if drawn else torch.zeros(num, 0, dtype=kind)
        for name, kind in (
            ("tokens", torch.int64),
            ("log_sum_exp", torch.float32),
            ("log_q", torch.float32),
        )
    ]
    draft = Draft(columns[0], stored, columns[1], columns[2])
    if one_hot:
        certain = torch.zeros(num, num_draft)
        draft = Draft(columns[0], None, certain, certain)
    starts = (lengths + 1).cumsum(0) - lengths - 1
    rest = uniforms[:, num_draft:]
    # Not contiguous, as the engine's are not.
    accept, noise = rest[:, 1 : num_draft + 1, 0], rest[:, num_draft + 1 : 2 * num_draft + 2]
    return Round(TargetRows(p[inside].to(dtype), starts, sampling), draft, lengths, accept, rest[:, 0], noise)


def block_rule(given: Round) -> tuple[Verdict, Tensor]:
    """The block rule by its definition, request by request in float64, and each request's margin.

    P_i = min(1, P_{i-1} p/q); h_i = Z_i / (Z_i + 1 - P_i), P_i at the end; the last i with u_i < h_i counts.
    """
    target, draft, lengths = given.target, given.draft, given.lengths
    p, q = processed(given), drafted(given)
    accepted, weights, margins = [], [], []
    for r, length in enumerate(lengths.tolist()):
        run, kept, near = [1.0], 0, [float("inf")] * (length + 1)
        for i in range(1, length + 1):
            x = draft.tokens[r, i - 1]
            log_ratio = p[r, i - 1, x].log() - draft.log_q[r, i - 1].double()
            run.append(min(1.0, run[-1] * float(log_ratio.exp())))
        for i in range(1, length + 1):
            u, left = float(given.accept[r, i - 1]), 1 - run[i]
            z = float((run[i] * p[r, i] - q[r, i]).clamp(min=0).sum()) if i < length else run[i]
            whole = z + left if i < length and run[i] < 1 else 1.0
            passed = u * whole < z or (run[i] == 1 and u < 1)
            near[i] = abs(u * whole - z)
            kept = i if passed else kept
        rest = p[r, length] if kept == length else (run[kept] * p[r, kept] - q[r, kept]).clamp(min=0)
        peak = torch.nn.functional.one_hot(p[r, kept].argmax(), p.shape[-1]).double()
        weights.append(rest if rest.sum() > 0 else peak)
        margins.append(min(near[max(kept, 1) :], default=float("inf")))
        accepted.append(kept)
    closing = torch.stack(weights)
    verdict = Verdict(torch.tensor(accepted), categorical.draw(closing, given.residual))
    margin = torch.tensor(margins, dtype=torch.float64)
    margin = torch.where(target.sampling.temperature == 0, float("inf"), margin)
    return verdict, torch.minimum(margin, draw_margin(closing, given.residual))


def token_rule(given: Round) -> tuple[Verdict, Tensor]:
    """The reference's verdict in float64, and each request's margin."""
    verdict = reference.token_rule(given.target, given.draft, given.lengths, given.accept, given.residual)
    p, q, num_draft = processed(given), drafted(given), given.draft.tokens.shape[1]
    closing = torch.arange(len(p)), verdict.accepted
    refused = (verdict.accepted < given.lengths)[:, None]
    left = (p[closing] - torch.nn.functional.pad(q, (0, 0, 0, 1))[closing]).clamp(min=0)
    margin = draw_margin(torch.where(refused, left, p[closing]), given.residual)
    log_q = given.draft.log_q.double()
    kept, scored = p[:, :-1].gather(-1, given.draft.tokens[..., None])[..., 0], given.accept * log_q.exp()
    apart = (kept - scored).abs() / torch.maximum(kept, scored).clamp(min=1e-300)
    looked_at = torch.arange(num_draft) < torch.minimum(verdict.accepted + 1, given.lengths)[:, None]
    apart = torch.where(looked_at & (kept + scored > 0), apart, float("inf"))
    return verdict, torch.cat([margin[:, None], apart], dim=1).amin(dim=1)


def delta_rule(given: Round) -> tuple[Verdict, Tensor]:
    """The reference's verdict in float64, and each request's margin."""
    verdict = reference.delta_rule(given.target, given.draft, given.lengths, given.noise)
    p = processed(given)
    margins = draw_margin(p.flatten(0, 1), given.noise.flatten(0, 1)).view(p.shape[:2])
    looked_at = torch.arange(p.shape[1]) <= verdict.accepted[:, None]
    return verdict, torch.where(looked_at, margins, float("inf")).amin(dim=1)


def processed(given: Round) -> Tensor:
    """p of every (request, step): float64 ``[R, G+1, V]``."""
    return reference._target_law(given.target, given.draft)


def drafted(given: Round) -> Tensor:
    """q of every (request, position): float64 ``[R, G, V]``."""
    draft = given.draft
    if draft.logits is None:
        return torch.nn.functional.one_hot(draft.tokens, given.target.logits.shape[1]).double()
    requests = torch.arange(len(draft.tokens)).repeat_interleave(draft.tokens.shape[1])
    rows = scale(draft.logits.flatten(0, 1), given.target.sampling, requests).view(draft.logits.shape)
    return (rows - draft.log_sum_exp[..., None]).exp()


def draw_margin(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Distance of a draw's uniforms to the steps of both levels, the nearest: ``[B]``."""
    num, vocab = weights.shape
    block = categorical.BLOCK
    tiles = torch.nn.functional.pad(weights, (0, -vocab % block)).view(num, -1, block)
    chosen = categorical.draw(weights, uniforms) // block
    inside = tiles[torch.arange(num), chosen]
    levels = [(tiles.sum(-1), uniforms[:, 0]), (inside, uniforms[:, 1])]
    margins = [_to_steps(level, uniform) for level, uniform in levels[int(tiles.shape[1] == 1) :]]
    return torch.stack(margins).amin(dim=0)


def _to_steps(weights: Tensor, uniform: Tensor) -> Tensor:
    """0 and 1 are no steps: what has no mass is never drawn. Noise of 0 gives the first mass anyway."""
    share = (weights.cumsum(-1) / weights.sum(-1, keepdim=True)).nan_to_num(nan=1.0)
    inner = (share > 0) & (share < 1 - 1e-15) & (uniform > 0)[:, None]
    return torch.where(inner, (share - uniform[:, None]).abs(), float("inf")).amin(dim=-1)


def cut_margin(given: Round) -> Tensor:
    """Distance of the nearest row of each request to another top-p or min-p cut: ``[R]``."""
    target, num = given.target, len(given.lengths)
    requests = torch.searchsorted(target.starts, torch.arange(len(target.logits)), right=True) - 1
    values = target.logits.double()
    values = values / target.sampling.temperature[requests].clamp(min=1e-3)[:, None]
    ordered = values.sort(dim=-1, descending=True).values
    margin = torch.full((len(values),), float("inf"), dtype=torch.float64)
    sampling: Sampling = target.sampling
    if sampling.top_k is not None:
        kth = ordered.gather(-1, sampling.top_k[requests][:, None] - 1)
        ordered = ordered.masked_fill(ordered < kth, NEG_INF)
    if sampling.top_p is not None:
        mass = ordered.softmax(-1)
        apart = (mass.cumsum(-1) - mass - sampling.top_p[requests][:, None]).abs().amin(-1)
        margin = torch.where(sampling.top_p[requests] < 1, apart, margin)
    if sampling.min_p is not None:
        floor = ordered[:, :1] + sampling.min_p[requests].log()[:, None]
        margin = torch.minimum(margin, (ordered - floor).abs().nan_to_num(nan=float("inf")).amin(-1))
    margin = torch.where(sampling.temperature[requests] == 0, float("inf"), margin)
    return torch.full((num,), float("inf"), dtype=torch.float64).scatter_reduce(0, requests, margin, "amin")
