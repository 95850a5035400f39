"""The verify kernels' specification in plain torch: vectorised over requests, readable top to bottom.

Rules take injected uniforms and work in float32 or float64, whichever the rows are; their outcome laws take
none and are float64. Categorical draws are those of ``deepspec.sampling.categorical``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from deepspec.sampling import Drawn, sampler
from deepspec.sampling.categorical import below_one, draw
from deepspec.sampling.process import process_rows, scale
from deepspec.types import Draft, Sampling, TargetRows, Verdict

#: Draws from stored rows ``[R, Vd]`` with one position's share of the noise.
Chooser = Callable[[Tensor, Sampling, Tensor], Drawn]


def draw_step(
    base: Tensor,
    correction: tuple[Tensor, Tensor] | None,
    sampling: Sampling,
    uniforms: Tensor,
    *,
    choose: Chooser | None = None,
) -> tuple[Tensor, Drawn]:
    """One draft position: the stored rows ``[R, Vd]``, and what is drawn from them.

    Args:
        base: logits ``[R, Vd]`` of the drafter.
        correction: the head's latent ``[R, Z]`` and W_out ``[Vd, Z]``, or None for a head without them.
        uniforms: ``[R, 2]``. choose: draws in the sampler's place.
    """
    choose = choose or sampler.draw_draft
    logits = base if correction is None else base + torch.nn.functional.linear(*correction)
    return logits, choose(logits, sampling, uniforms)


def token_rule(
    target: TargetRows, draft: Draft, lengths: Tensor, accept: Tensor, residual: Tensor
) -> Verdict:
    """Speculative sampling (Leviathan 2023, Chen 2023): accept x_i iff u_i q_i(x_i) < p_i(x_i).

    Args:
        target: packed target rows of R requests.
        draft: tokens ``[R, G]`` and the rows they were drawn from (one-hot where ``logits`` is None).
        lengths: int64 ``[R]``, verified tokens of each request.
        accept: uniforms ``[R, G]``. residual: uniforms ``[R, 2]``.
    """
    num_draft = draft.tokens.shape[1]
    rows = _row_index(target, num_draft)
    p = _processed(target).softmax(dim=-1)  # one pass; on a CPU far faster than a log-sum-exp
    p_drafted = p[rows[:, :num_draft], draft.tokens]
    kept = below_one(accept, p.dtype) * draft.log_q.to(p.dtype).exp() < p_drafted
    accepted = _prefix_length(kept, lengths)
    closing = p[rows.gather(1, accepted[:, None])[:, 0]]
    bonus = draw(_residual(closing, draft, accepted, lengths, target), residual)
    return Verdict(accepted=accepted, bonus=bonus)


def block_rule(
    target: TargetRows, draft: Draft, lengths: Tensor, accept: Tensor, residual: Tensor
) -> Verdict:
    """Block verification (Sun et al. 2025, 2403.10444): the longest prefix that passes its test is kept.

    With P_0 = 1 and P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)), the prefix of i < l tokens passes when
    u_i < Z_i / (Z_i + 1 - P_i), Z_i being the mass of (P_i p_{i+1} - q_{i+1})+, and that of l when u_l < P_l.
    Every test is made; after a < l tokens the round closes by (P_a p_{a+1} - q_{a+1})+. Arguments are those
    of :func:`token_rule`.
    """
    num_draft = draft.tokens.shape[1]
    rows = _row_index(target, num_draft)
    p = _processed(target).softmax(dim=-1)[rows]
    if num_draft == 0:
        return Verdict(accepted=torch.zeros_like(lengths), bonus=draw(p[:, 0], residual))
    reached = _reached(p, draft)
    left = _left_over(p, reached, draft, target.sampling)
    passes = below_one(accept, p.dtype) < _pass_chances(reached, left.sum(dim=-1), lengths)
    steps = torch.arange(1, num_draft + 1, device=p.device)
    accepted = (passes * steps).amax(dim=1)
    requests = torch.arange(len(p), device=p.device)
    closing = p[requests, accepted]
    rest = _or_peak(left[requests, accepted.clamp(max=num_draft - 1)], closing)
    bonus = draw(torch.where((accepted < lengths)[:, None], rest, closing), residual)
    return Verdict(accepted=accepted, bonus=bonus)


def delta_rule(target: TargetRows, draft: Draft, lengths: Tensor, noise: Tensor) -> Verdict:
    """Exact match: draw y_i ~ p_i with noise keyed by absolute position, keep drafts while y_i = x_i.

    Needs no q; its output is plain decoding's with the same seed, for any draft and any lengths.
    ``noise`` is ``[R, G+1, 2]``.
    """
    num_draft = draft.tokens.shape[1]
    rows = _row_index(target, num_draft)
    weights = _processed(target).softmax(dim=-1)[rows.flatten()]
    drawn = draw(weights, noise.flatten(0, 1)).view(rows.shape)
    if num_draft == 0:
        return Verdict(accepted=torch.zeros_like(lengths), bonus=drawn[:, 0])
    accepted = _prefix_length(drawn[:, :num_draft] == draft.tokens, lengths)
    return Verdict(accepted=accepted, bonus=drawn.gather(1, accepted[:, None])[:, 0])


def token_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`token_rule` over its uniforms: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    drafted = draft.tokens[..., None]
    p_drafted = p[:, :-1].gather(-1, drafted)[..., 0]
    q_drafted = draft.log_q.double().exp()
    kept = torch.where(p_drafted >= q_drafted, 1.0, p_drafted / q_drafted)
    return _prefix_law(kept, _residual_law(p[:, :-1], draft, target.sampling), p, lengths)


def block_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`block_rule` over its uniforms: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    num_draft = draft.tokens.shape[1]
    if num_draft == 0:
        return p
    reached = _reached(p, draft)
    left = _left_over(p, reached, draft, target.sampling)
    chances = _pass_chances(reached, left.sum(dim=-1), lengths)
    later = torch.nn.functional.pad((1 - chances).flip(1).cumprod(dim=1).flip(1), (0, 1), value=1.0)
    last = torch.nn.functional.pad(chances, (1, 0), value=1.0) * later
    rest = _or_peak(left, p[:, :-1])
    rest = torch.nn.functional.pad(rest / rest.sum(dim=-1, keepdim=True), (0, 0, 0, 1))
    ends = torch.arange(num_draft + 1, device=p.device)[:, None] >= lengths[:, None, None]
    return last[..., None] * torch.where(ends, p, rest)


def delta_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`delta_rule` over its noise: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    drafted = draft.tokens[..., None]
    kept = p[:, :-1].gather(-1, drafted)
    others = p[:, :-1].scatter(-1, drafted, 0.0)
    total = others.sum(dim=-1, keepdim=True)
    return _prefix_law(kept[..., 0], others / torch.where(total > 0, total, 1.0), p, lengths)


def _reached(p: Tensor, draft: Draft) -> Tensor:
    """P_0..P_G of the block rule, ``[R, G+1]``, for target distributions p ``[R, G+1, V]``."""
    drafted = p[:, :-1].gather(-1, draft.tokens[..., None])[..., 0]
    ratios = torch.where(drafted > 0, drafted / draft.log_q.to(p.dtype).exp(), 0.0)
    columns = [torch.ones_like(p[:, 0, 0])]
    for ratio in ratios.unbind(1):
        columns.append((columns[-1] * ratio).clamp(max=1.0))
    return torch.stack(columns, dim=1)


def _left_over(p: Tensor, reached: Tensor, draft: Draft, sampling: Sampling) -> Tensor:
    """(P_i p_{i+1} - q_{i+1})+ of every i < G: ``[R, G, V]``."""
    return (reached[:, :-1, None] * p[:, :-1]).sub_(_draft_law(p, draft, sampling)).clamp_(min=0.0)


def _pass_chances(reached: Tensor, mass: Tensor, lengths: Tensor) -> Tensor:
    """The chance of each prefix's test ``[R, G]``, 0 past ``lengths``, given the masses Z_0..Z_{G-1}."""
    following = torch.nn.functional.pad(mass[:, 1:], (0, 1))
    refused = 1 - reached[:, 1:]
    inner = torch.where(refused > 0, following / (following + refused), 1.0)
    steps = torch.arange(1, mass.shape[1] + 1, device=mass.device)
    chances = torch.where(steps == lengths[:, None], reached[:, 1:], inner)
    return torch.where(steps <= lengths[:, None], chances, 0.0)


def _or_peak(left: Tensor, p: Tensor) -> Tensor:
    """Weights ``[..., V]``, or where they have no mass a certain token: p's most likely."""
    peak = torch.zeros_like(p).scatter_(-1, p.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where(left.sum(dim=-1, keepdim=True) > 0, left, peak)


def _draft_law(p: Tensor, draft: Draft, sampling: Sampling) -> Tensor:
    """q of every drafted position in p's type: ``[R, G, V]``."""
    if draft.logits is None:
        return torch.nn.functional.one_hot(draft.tokens, p.shape[-1]).to(p.dtype)
    requests = torch.arange(len(p), device=p.device).repeat_interleave(draft.tokens.shape[1])
    rows = scale(draft.logits.flatten(0, 1), sampling, requests).unflatten(0, draft.tokens.shape)
    return (rows.to(p.dtype) - draft.log_sum_exp.to(p.dtype)[..., None]).exp_()


def _target_law(target: TargetRows, draft: Draft) -> Tensor:
    """The processed target distribution of every (request, position): float64 ``[R, G+1, V]``."""
    rows = _row_index(target, draft.tokens.shape[1])
    return _processed(target).double().softmax(dim=-1)[rows]


def _residual_law(p: Tensor, draft: Draft, sampling: Sampling) -> Tensor:
    """(p - q)+ normalised, p's argmax where it has no mass: float64 ``[R, G, V]``."""
    left = _or_peak((p - _draft_law(p, draft, sampling)).clamp(min=0.0), p)
    return left / left.sum(dim=-1, keepdim=True)


def _prefix_law(kept: Tensor, closing: Tensor, p: Tensor, lengths: Tensor) -> Tensor:
    """Position k is kept with probability ``kept [R, G]``, else ``closing [R, G, V]`` ends the round;
    p ends it after ``lengths``."""
    alive = torch.nn.functional.pad(kept.cumprod(dim=1), (1, 0), value=1.0)
    steps = torch.arange(p.shape[1], device=p.device)
    before = (steps[:-1] < lengths[:, None]).double()[..., None]
    refused = (alive[:, :-1] * (1 - kept))[..., None] * closing * before
    full = alive[..., None] * p * (steps == lengths[:, None]).double()[..., None]
    return torch.nn.functional.pad(refused, (0, 0, 0, 1)) + full


def _row_index(target: TargetRows, num_draft: int) -> Tensor:
    """Packed row of every (request, position) ``[R, G+1]``, clamped to the last row."""
    steps = torch.arange(num_draft + 1, device=target.starts.device)
    return (target.starts[:, None] + steps).clamp_(max=target.logits.shape[0] - 1)


def _processed(target: TargetRows) -> Tensor:
    """Every packed row under its own request's parameters."""
    if target.sampling.is_plain:
        return scale(target.logits, target.sampling)
    every_row = torch.arange(target.logits.shape[0], device=target.starts.device)
    requests = torch.searchsorted(target.starts, every_row, right=True) - 1
    return process_rows(target.logits, target.sampling, requests)


def _prefix_length(kept: Tensor, lengths: Tensor) -> Tensor:
    """How many leading positions are kept, at most ``lengths``: int64 ``[R]``."""
    inside = torch.arange(kept.shape[1], device=kept.device) < lengths[:, None]
    return (kept & inside).to(torch.int64).cumprod(dim=1).sum(dim=1)


def _residual(p: Tensor, draft: Draft, accepted: Tensor, lengths: Tensor, target: TargetRows) -> Tensor:
    """Weights of the closing token ``[R, V]``: p after full acceptance, else (p - q)+ or p's argmax."""
    rejected = accepted < lengths
    last = draft.tokens.shape[1] - 1
    if last < 0:
        return p
    index = accepted.clamp(max=last)
    requests = torch.arange(len(index), device=index.device)
    if draft.logits is None:
        q = torch.nn.functional.one_hot(draft.tokens[requests, index], p.shape[-1]).to(p.dtype)
    else:
        rows = scale(draft.logits[requests, index], target.sampling)
        q = (rows - draft.log_sum_exp[requests, index, None].to(p.dtype)).exp()
    left = _or_peak((p - q).clamp_(min=0.0), p)
    return torch.where(rejected[:, None], left, p)
