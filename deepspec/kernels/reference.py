"""The verify kernels' specification in plain torch: vectorised over requests, readable top to bottom.

Rules take injected uniforms and work in float32 or float64, whichever the rows are; their outcome laws take
none and are float64. Categorical draws are those of ``deepspec.sampling.categorical``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deepspec.sampling import Drawn, sampler, streams
from deepspec.sampling.categorical import below_one, draw
from deepspec.sampling.process import process_rows, scale
from deepspec.sampling.streams import Array
from deepspec.types import Draft, Sampling, TargetRows, Verdict

#: Elements of the rows that a CPU works on at once.
_TILE_ELEMENTS = 2**18
#: Draws from stored rows ``[R, Vd]`` with one position's share of the noise.
Chooser = Callable[[Tensor, Sampling, Tensor], Drawn]


def uniforms(seeds: Array, positions: Array, indices: Array, stream: Array, device: torch.device) -> Tensor:
    """``streams.uniforms`` of every broadcast key, made on the host: float64 ``[..., 2]``, float32 on MPS."""
    drawn = torch.from_numpy(streams.uniforms(seeds, positions, indices, stream))
    return drawn.to(device, torch.float32 if device.type == "mps" else torch.float64, non_blocking=True)


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
    chances = _chances(target, draft)
    kept = below_one(accept, chances.dtype) * draft.log_q.to(chances.dtype).exp() < chances
    accepted = _prefix_length(kept, lengths)
    whole = torch.ones_like(residual[:, 0], dtype=chances.dtype)
    return Verdict(accepted, _close(target, draft, accepted, lengths, whole, residual))


def block_rule(
    target: TargetRows, draft: Draft, lengths: Tensor, accept: Tensor, residual: Tensor
) -> Verdict:
    """Block verification (Sun et al. 2025, 2403.10444): the longest prefix that passes its test is kept.

    With P_0 = 1 and P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)), the prefix of i < l tokens passes when
    u_i < Z_i / (Z_i + 1 - P_i), Z_i being the mass of (P_i p_{i+1} - q_{i+1})+, and that of l when u_l < P_l.
    Every test is made; after a < l tokens the round closes by (P_a p_{a+1} - q_{a+1})+. Arguments are those
    of :func:`token_rule`.
    """
    reached = _reached(_chances(target, draft), draft)
    chances = _pass_chances(reached, _left_masses(target, draft, reached), lengths)
    passes = below_one(accept, chances.dtype) < chances
    steps = torch.arange(1, chances.shape[1] + 1, device=chances.device)
    accepted = torch.nn.functional.pad(passes * steps, (1, 0)).amax(dim=1)
    factor = reached.gather(1, accepted[:, None])[:, 0]
    return Verdict(accepted, _close(target, draft, accepted, lengths, factor, residual))


def delta_rule(target: TargetRows, draft: Draft, lengths: Tensor, noise: Tensor) -> Verdict:
    """Exact match: draw y_i ~ p_i with noise keyed by absolute position, keep drafts while y_i = x_i.

    Needs no q; its output is plain decoding's with the same seed, for any draft and any lengths.
    ``noise`` is ``[R, G+1, 2]``.
    """
    num, num_draft = draft.tokens.shape
    tiles = _Tiles(target, num, num_draft + 1)
    drawn = torch.cat([draw(tiles.softmax(r, k)[0], noise[r, k]) for r, k in tiles]).view(num, -1)
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
    reached = _reached(p[:, :-1].gather(-1, draft.tokens[..., None])[..., 0], draft)
    left = _left_over(p, reached, draft, target.sampling)
    chances = _pass_chances(reached, left.sum(dim=-1), lengths)
    later = torch.nn.functional.pad((1 - chances).flip(1).cumprod(dim=1).flip(1), (0, 1), value=1.0)
    last = torch.nn.functional.pad(chances, (1, 0), value=1.0) * later
    rest = _or_peak_(left.clone(), p[:, :-1].argmax(dim=-1, keepdim=True))
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


class _Tiles:
    """Target rows of (request, position) pairs, on a CPU as many at a time as its cache has room for.

    The two buffers serve all tiles: fresh memory takes longer to get than probabilities to compute.
    """

    def __init__(self, target: TargetRows, num: int, num_steps: int) -> None:
        self._target, self._num_steps = target, max(1, num_steps)
        rows, pairs = target.logits, torch.arange(num * num_steps, device=target.logits.device)
        size = max(1, _TILE_ELEMENTS // rows.shape[1]) if rows.device.type == "cpu" else len(pairs)
        self.parts = pairs.split(max(1, size))
        self.shape = (min(max(1, size), len(pairs)), rows.shape[1])
        self._rows = rows.new_empty(self.shape)
        self._weights = rows.new_empty(self.shape, dtype=torch.promote_types(rows.dtype, torch.float32))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Requests and positions of each tile."""
        for pairs in self.parts:
            yield pairs // self._num_steps, pairs % self._num_steps

    def softmax(self, requests: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``[n, V]`` until the next tile, and their sums ``[n, 1]``, by which p is to be divided.

        Softmax's own float32 sum goes term by term, which leaves a peak with a long tail up to 6e-4 too
        likely at V = 262,144; ``sum`` adds in pieces.
        """
        target, num = self._target, len(requests)
        places = (target.starts[requests] + steps).clamp_(max=len(target.logits) - 1)
        rows = torch.index_select(target.logits, 0, places, out=self._rows[:num])
        rows = process_rows(rows, target.sampling, requests)
        weights = torch.softmax(rows, dim=-1, out=self._weights[:num])
        return weights, weights.sum(dim=-1, keepdim=True)


def _chances(target: TargetRows, draft: Draft) -> Tensor:
    """p of every drafted token ``[R, G]``."""
    parts, tiles = [], _Tiles(target, *draft.tokens.shape)
    for r, k in tiles:
        weights, total = tiles.softmax(r, k)
        parts.append((weights.gather(1, draft.tokens[r, k][:, None]) / total)[:, 0])
    return torch.cat(parts).view(draft.tokens.shape)


def _left_masses(target: TargetRows, draft: Draft, reached: Tensor) -> Tensor:
    """The mass of (P_i p_{i+1} - q_{i+1})+ of every i < G: ``[R, G]``."""
    parts, tiles = [], _Tiles(target, *draft.tokens.shape)
    room = None if draft.logits is None else draft.logits.new_empty(tiles.shape)
    for r, k in tiles:
        weights, total = tiles.softmax(r, k)
        q = _draft_rows(weights, draft, target.sampling, r, k, None if room is None else room[: len(r)])
        left = weights.mul_(reached[r, k][:, None] / total).sub_(q).clamp_(min=0.0)
        parts.append(left.sum(dim=-1))
    return torch.cat(parts).view(draft.tokens.shape)


def _close(
    target: TargetRows, draft: Draft, accepted: Tensor, lengths: Tensor, factor: Tensor, residual: Tensor
) -> Tensor:
    """The closing token ``[R]``: from p after full acceptance, else from (factor p - q)+ or p's argmax."""
    num, num_draft = draft.tokens.shape
    bonus, tiles = [], _Tiles(target, num, 1)
    for r, _ in tiles:
        weights, total = tiles.softmax(r, accepted[r])
        if num_draft > 0:
            refused = (accepted < lengths)[r]
            peak = weights.argmax(dim=-1, keepdim=True)
            q = _draft_rows(weights, draft, target.sampling, r, accepted[r].clamp(max=num_draft - 1))
            weights.mul_(torch.where(refused, factor[r], 1.0)[:, None] / total)
            weights.sub_(q.mul_(refused[:, None])).clamp_(min=0.0)
            weights = _or_peak_(weights, peak)
        bonus.append(draw(weights, residual[r]))
    return torch.cat(bonus)


def _reached(p_drafted: Tensor, draft: Draft) -> Tensor:
    """P_0..P_G of the block rule, ``[R, G+1]``, for p of the drafted tokens ``[R, G]``."""
    ratios = torch.where(p_drafted > 0, p_drafted / draft.log_q.to(p_drafted.dtype).exp(), 0.0)
    columns = [p_drafted.new_ones(len(p_drafted))]
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


def _or_peak_(left: Tensor, peak: Tensor) -> Tensor:
    """Weights ``[..., V]``; where they have no mass, a certain token, ``peak [..., 1]``, is put in."""
    empty = left.sum(dim=-1, keepdim=True) <= 0
    return left.scatter_add_(-1, peak, empty.to(left.dtype))


def _draft_rows(
    p: Tensor, draft: Draft, sampling: Sampling, requests: Tensor, steps: Tensor, out: Tensor | None = None
) -> Tensor:
    """q of some pairs, of p's ``[n, V]`` shape and type; ``out`` is room for as many stored rows."""
    if draft.logits is None:
        return torch.nn.functional.one_hot(draft.tokens[requests, steps], p.shape[-1]).to(p.dtype)
    stored, places = draft.logits.flatten(0, 1), requests * draft.tokens.shape[1] + steps
    rows = scale(torch.index_select(stored, 0, places, out=out), sampling, requests)
    return rows.to(p.dtype).sub_(draft.log_sum_exp[requests, steps, None].to(p.dtype)).exp_()


def _draft_law(p: Tensor, draft: Draft, sampling: Sampling) -> Tensor:
    """q of every drafted position in p's type: ``[R, G, V]``."""
    num, num_draft = draft.tokens.shape
    pairs = torch.arange(num * num_draft, device=p.device)
    rows = _draft_rows(p, draft, sampling, pairs // max(1, num_draft), pairs % max(1, num_draft))
    return rows.unflatten(0, (num, num_draft))


def _target_law(target: TargetRows, draft: Draft) -> Tensor:
    """The processed target distribution of every (request, position): float64 ``[R, G+1, V]``."""
    num, num_steps = len(draft.tokens), draft.tokens.shape[1] + 1
    steps = torch.arange(num_steps, device=target.starts.device)
    rows = (target.starts[:, None] + steps).clamp_(max=target.logits.shape[0] - 1)
    requests = torch.arange(num, device=rows.device).repeat_interleave(num_steps)
    processed = process_rows(target.logits[rows.flatten()], target.sampling, requests)
    return processed.double().softmax(dim=-1).unflatten(0, (num, num_steps))


def _residual_law(p: Tensor, draft: Draft, sampling: Sampling) -> Tensor:
    """(p - q)+ normalised, p's argmax where it has no mass: float64 ``[R, G, V]``."""
    left = (p - _draft_law(p, draft, sampling)).clamp_(min=0.0)
    left = _or_peak_(left, p.argmax(dim=-1, keepdim=True))
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


def _prefix_length(kept: Tensor, lengths: Tensor) -> Tensor:
    """How many leading positions are kept, at most ``lengths``: int64 ``[R]``."""
    inside = torch.arange(kept.shape[1], device=kept.device) < lengths[:, None]
    return (kept & inside).to(torch.int64).cumprod(dim=1).sum(dim=1)
