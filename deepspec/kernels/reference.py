"""The verify kernels' specification in plain torch: vectorised over requests, readable top to bottom.

Rules take injected uniforms and work in float32 or float64, whichever the rows are; their outcome laws take
none and are float64. Categorical draws are those of ``deepspec.sampling.categorical``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.sampling.categorical import below_one, draw
from deepspec.sampling.process import process_rows, scale
from deepspec.types import Draft, Sampling, TargetRows, Verdict

#: Elements that are worked on at a time, so that temporaries stay in a core's cache.
PIECE = 2**18


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
    log_total, log_p = _row_stats(target, draft)
    log_q = draft.log_q.to(log_p.dtype)
    kept = below_one(accept, log_p.dtype) * log_q.exp() < log_p.exp()
    accepted = _prefix_length(kept, lengths)
    share = torch.ones_like(accepted, dtype=log_p.dtype)
    return Verdict(accepted, _closing_token(target, draft, lengths, accepted, share, log_total, residual))


def block_rule(
    target: TargetRows, draft: Draft, lengths: Tensor, accept: Tensor, residual: Tensor
) -> Verdict:
    """Block verification (Sun et al. 2024, 2403.10444): the last position that passes its test is kept.

    With P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)) and Z_i the mass of (P_i p_{i+1} - q_{i+1})+, position i
    passes iff u_i < Z_i / (Z_i + 1 - P_i), the last verified one iff u_i < P_i; what is left over after
    position a is (P_a p_{a+1} - q_{a+1})+. Arguments are those of :func:`token_rule`.
    """
    log_total, log_p = _row_stats(target, draft)
    uniforms, reached = below_one(accept, log_p.dtype), _reached(log_p - draft.log_q.to(log_p.dtype))
    after = reached[:, 1:]
    steps = torch.arange(1, after.shape[1] + 1, device=after.device)
    # The test's chance is at most P_i, and it is 1 where P_i is.
    possible = (uniforms < after) & (steps <= lengths[:, None])
    certain = possible & ((after == 1) | (steps == lengths[:, None]))
    mass = _residual_mass(target, draft, possible & ~certain, after, log_total)
    passed = certain | (possible & (uniforms * (mass + 1 - after) < mass))
    accepted = torch.nn.functional.pad(passed * steps, (1, 0)).amax(dim=1)
    share = reached.gather(1, accepted[:, None])[:, 0]
    return Verdict(accepted, _closing_token(target, draft, lengths, accepted, share, log_total, residual))


def delta_rule(target: TargetRows, draft: Draft, lengths: Tensor, noise: Tensor) -> Verdict:
    """Exact match: draw y_i ~ p_i with noise keyed by absolute position, keep drafts while y_i = x_i.

    Needs no q; its output is plain decoding's with the same seed, for any draft and any lengths.
    ``noise`` is ``[R, G+1, 2]``.
    """
    num_draft = draft.tokens.shape[1]
    requests, steps = _places(target, num_draft)
    columns = (_pieces(target, x) for x in (target.logits, requests, noise[requests, steps]))
    drawn = [
        draw(process_rows(logits, target.sampling, of).softmax(dim=-1), uniforms)
        for logits, of, uniforms in zip(*columns, strict=True)
    ]
    closing = torch.cat(drawn)[_row_index(target, num_draft)]
    accepted = _prefix_length(closing[:, :num_draft] == draft.tokens, lengths)
    return Verdict(accepted=accepted, bonus=closing.gather(1, accepted[:, None])[:, 0])


def token_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`token_rule` over its uniforms: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    drafted = draft.tokens[..., None]
    p_drafted = p[:, :-1].gather(-1, drafted)[..., 0]
    q_drafted = draft.log_q.double().exp()
    kept = torch.where(p_drafted >= q_drafted, 1.0, p_drafted / q_drafted)
    left, _ = _residual_law(p[:, :-1], torch.ones_like(kept), draft, target.sampling)
    return _prefix_law(kept, left, p, lengths)


def block_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`block_rule` over its uniforms: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    log_p = p[:, :-1].gather(-1, draft.tokens[..., None])[..., 0].log()
    reached = _reached(log_p - draft.log_q.double())
    left, mass = _residual_law(p[:, :-1], reached[:, :-1], draft, target.sampling)
    before = mass[:, 1:] + 1 - reached[:, 1:-1]
    inner = torch.where(reached[:, 1:-1] == 1, 1.0, mass[:, 1:] / torch.where(before > 0, before, 1.0))
    steps = torch.arange(p.shape[1], device=p.device)
    passes = torch.nn.functional.pad(inner, (1, p.shape[1] - 1 - inner.shape[1]), value=1.0)
    passes = torch.where(steps == lengths[:, None], reached, passes)
    passes = torch.where(steps > lengths[:, None], 0.0, passes)
    none_later = torch.nn.functional.pad(
        (1 - passes[:, 1:]).flip(1).cumprod(dim=1).flip(1), (0, 1), value=1.0
    )
    ends = (steps == lengths[:, None])[..., None]
    closing = torch.where(ends, p, torch.nn.functional.pad(left, (0, 0, 0, 1)))
    return (passes * none_later)[..., None] * closing


def delta_outcome(target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
    """The law of :func:`delta_rule` over its noise: float64 ``[R, G+1, V]``, accepted count and bonus."""
    p = _target_law(target, draft)
    drafted = draft.tokens[..., None]
    kept = p[:, :-1].gather(-1, drafted)
    others = p[:, :-1].scatter(-1, drafted, 0.0)
    total = others.sum(dim=-1, keepdim=True)
    return _prefix_law(kept[..., 0], others / torch.where(total > 0, total, 1.0), p, lengths)


def _target_law(target: TargetRows, draft: Draft) -> Tensor:
    """The processed target distribution of every (request, position): float64 ``[R, G+1, V]``."""
    num_draft = draft.tokens.shape[1]
    every = process_rows(target.logits, target.sampling, _places(target, num_draft)[0])
    return every.double().softmax(dim=-1)[_row_index(target, num_draft)]


def _residual_law(p: Tensor, share: Tensor, draft: Draft, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(share p - q)+ normalised, p's argmax where it has no mass, and its mass.

    Float64: p and the first result are ``[R, G, V]``, share and mass ``[R, G]``.
    """
    if draft.logits is None:
        q = torch.nn.functional.one_hot(draft.tokens, p.shape[-1]).double()
    else:
        requests = torch.arange(len(p), device=p.device).repeat_interleave(p.shape[1])
        rows = scale(draft.logits.flatten(0, 1), sampling, requests).unflatten(0, p.shape[:2])
        q = (rows.double() - draft.log_sum_exp.double()[..., None]).exp()
    left = (share[..., None] * p - q).clamp(min=0.0)
    mass = left.sum(dim=-1, keepdim=True)
    peak = torch.zeros_like(p).scatter_(-1, p.argmax(dim=-1, keepdim=True), 1.0)
    return torch.where(mass > 0, left / torch.where(mass > 0, mass, 1.0), peak), mass[..., 0]


def _prefix_law(kept: Tensor, closing: Tensor, p: Tensor, lengths: Tensor) -> Tensor:
    """Position k is kept with probability ``kept [R, G]``, else ``closing [R, G, V]`` ends the round;
    p ends it after ``lengths``."""
    alive = torch.nn.functional.pad(kept.cumprod(dim=1), (1, 0), value=1.0)
    steps = torch.arange(p.shape[1], device=p.device)
    before = (steps[:-1] < lengths[:, None]).double()[..., None]
    refused = (alive[:, :-1] * (1 - kept))[..., None] * closing * before
    full = alive[..., None] * p * (steps == lengths[:, None]).double()[..., None]
    return torch.nn.functional.pad(refused, (0, 0, 0, 1)) + full


def _reached(log_ratio: Tensor) -> Tensor:
    """P_0 .. P_G ``[R, G+1]``, a product that never rises above 1, of exp(log_ratio ``[R, G]``)."""
    walk = torch.nn.functional.pad(log_ratio.cumsum(dim=1), (1, 0))
    return (walk - walk.cummax(dim=1).values).exp()


def _prefix_length(kept: Tensor, lengths: Tensor) -> Tensor:
    """How many leading positions are kept, at most ``lengths``: int64 ``[R]``."""
    inside = torch.arange(kept.shape[1], device=kept.device) < lengths[:, None]
    return (kept & inside).to(torch.int64).cumprod(dim=1).sum(dim=1)


def _row_index(target: TargetRows, num_draft: int) -> Tensor:
    """Packed row of every (request, position) ``[R, G+1]``, clamped to the last row."""
    steps = torch.arange(num_draft + 1, device=target.starts.device)
    return (target.starts[:, None] + steps).clamp_(max=target.logits.shape[0] - 1)


def _places(target: TargetRows, num_draft: int) -> tuple[Tensor, Tensor]:
    """Request and position in 0..G of every packed row: int64 ``[B]`` each."""
    rows = torch.arange(len(target.logits), device=target.starts.device)
    requests = torch.searchsorted(target.starts, rows, right=True) - 1
    return requests, (rows - target.starts[requests]).clamp(max=num_draft)


def _pieces(target: TargetRows, items: Tensor) -> tuple[Tensor, ...]:
    """``items [N, ...]``, each a whole row's work, in pieces of ``PIECE`` elements or one row."""
    return items.split(max(1, PIECE // target.logits.shape[-1]))


def _row_stats(target: TargetRows, draft: Draft) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of every packed row ``[B]``, and log p_k of each drafted token ``[R, G]``."""
    num_draft = draft.tokens.shape[1]
    requests, steps = _places(target, num_draft)
    tokens = torch.nn.functional.pad(draft.tokens, (0, 1))[requests, steps]
    totals, drafted = [], []
    for logits, of, token in zip(
        *(_pieces(target, x) for x in (target.logits, requests, tokens)), strict=True
    ):
        values = process_rows(logits, target.sampling, of)
        # log max p = max - lse: the fused softmax is the fastest way over a row, and as exact.
        total = values.amax(dim=-1) - values.softmax(dim=-1).amax(dim=-1).log()
        totals.append(total)
        drafted.append(values.gather(-1, token[:, None])[:, 0] - total)
    return torch.cat(totals), torch.cat(drafted)[_row_index(target, num_draft)[:, :num_draft]]


def _residual_mass(
    target: TargetRows, draft: Draft, needed: Tensor, share: Tensor, log_total: Tensor
) -> Tensor:
    """The mass of (share p - q)+ at the position after each of those that are ``needed``; all ``[R, G]``."""
    mass, num_draft = torch.zeros_like(share).flatten(), needed.shape[1]
    for part in _pieces(target, _worthwhile(needed.flatten())):
        requests, index = part // num_draft, part % num_draft + 1
        p = _probabilities(target, requests, index, log_total)
        left = share.flatten()[part, None] * p - _draft_probabilities(target, draft, requests, index)
        mass[part] = left.clamp_(min=0.0).sum(dim=-1)
    return mass.view_as(share)


def _closing_token(
    target: TargetRows,
    draft: Draft,
    lengths: Tensor,
    accepted: Tensor,
    share: Tensor,
    log_total: Tensor,
    uniforms: Tensor,
) -> Tensor:
    """Tokens ``[R]`` drawn from p after full acceptance, else from (share p - q)+, or p's argmax where that
    has no mass; ``share [R]``."""
    tokens = []
    for requests in _pieces(target, torch.arange(len(lengths), device=lengths.device)):
        index = accepted[requests]
        weights = _probabilities(target, requests, index, log_total)
        refused = _worthwhile(index < lengths[requests])
        if draft.tokens.shape[1] > 0:
            p, of = weights[refused], requests[refused]
            left = share[of, None] * p - _draft_probabilities(target, draft, of, index[refused])
            left.clamp_(min=0.0)
            peak = torch.zeros_like(p).scatter_(-1, p.argmax(dim=-1, keepdim=True), 1.0)
            left = torch.where(left.sum(dim=-1, keepdim=True) > 0, left, peak)
            weights[refused] = torch.where((index < lengths[requests])[refused, None], left, p)
        tokens.append(draw(weights, uniforms[requests]))
    return torch.cat(tokens)


def _worthwhile(wanted: Tensor) -> Tensor:
    """Indices to work on: those that ``wanted [N]`` marks, or all where the host would wait to know them."""
    if wanted.device.type == "cpu":
        return wanted.nonzero()[:, 0]
    return torch.arange(len(wanted), device=wanted.device)


def _probabilities(target: TargetRows, requests: Tensor, index: Tensor, log_total: Tensor) -> Tensor:
    """Target rows ``index [N]`` of requests ``[N]``: ``[N, V]``."""
    rows = (target.starts[requests] + index).clamp(max=len(target.logits) - 1)
    return process_rows(target.logits[rows], target.sampling, requests).sub_(log_total[rows, None]).exp_()


def _draft_probabilities(target: TargetRows, draft: Draft, requests: Tensor, index: Tensor) -> Tensor:
    """Draft rows ``index [N]`` of requests ``[N]``, the last one for those past it: ``[N, V]``."""
    index = index.clamp(max=draft.tokens.shape[1] - 1)
    if draft.logits is None:
        dtype = torch.float64 if target.logits.dtype == torch.float64 else torch.float32
        return torch.nn.functional.one_hot(draft.tokens[requests, index], target.logits.shape[-1]).to(dtype)
    rows = scale(draft.logits[requests, index], target.sampling, requests)
    return (rows - draft.log_sum_exp[requests, index, None].to(rows.dtype)).exp_()
