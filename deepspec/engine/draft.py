"""The drafting half of a round: drive drafter and head position by position; the core alone samples.

What a model-free drafter proposes is taken as certain, whatever its lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from deepspec.errors import PluginError
from deepspec.interfaces import Drafter, OnlineCalibrator, Proposer, Readout
from deepspec.kernels import DrawStep, backend_for
from deepspec.kernels.reference import Chooser, draw_step
from deepspec.sampling import Drawn, scale
from deepspec.types import Anchors, Draft, Sampling

if TYPE_CHECKING:
    from deepspec.strategy import Parts


@dataclass(frozen=True)
class Drafted:
    """What was drafted.

    Attributes:
        draft: G tokens of each request.
        lengths: int64 ``[R]``, how many of them count; -1 where a proposal is none (:func:`check_lengths`).
        confidence: logits ``[R, G]``, None when the head gives none.
    """

    draft: Draft
    lengths: Tensor
    confidence: Tensor | None


def run_draft(
    parts: Parts, anchors: Anchors, sampling: Sampling, noise: Tensor, choose: Chooser | None = None
) -> Drafted:
    """Draft ``anchors.num_draft`` tokens for R requests with uniforms ``[R, G, 2]``.

    ``choose`` stands in for the sampler where every block is enumerated, and reads what ``noise`` holds then.
    """
    drafter = parts.drafter
    if isinstance(drafter, Proposer):
        return _proposed(drafter, anchors)
    state = drafter.begin(anchors)
    hidden = drafter.parallel_hidden(state)
    if hidden is None:
        steps = partial(drafter.step, state)
        return _draw_steps(parts, anchors.tokens, steps, None, sampling, noise, choose)
    return draft_block(parts, hidden, anchors.tokens, sampling, noise, choose)


def draft_block(
    parts: Parts,
    hidden: Tensor,
    anchors: Tensor,
    sampling: Sampling,
    noise: Tensor,
    choose: Chooser | None = None,
) -> Drafted:
    """The tokens after ``anchors [R]`` from a parallel drafter's hidden states ``[R, >= G, H]``.

    See :func:`run_draft` for the rest.
    """
    assert isinstance(parts.drafter, Drafter), "a proposer has no hidden states"
    base = readout_logits(hidden[:, : noise.shape[1]], parts.drafter.readout())
    return _draw_steps(parts, anchors, lambda k, _: hidden[:, k], base, sampling, noise, choose)


def _draw_steps(
    parts: Parts,
    anchors: Tensor,
    steps: Callable[[int, Tensor], Tensor],
    base: Tensor | None,
    sampling: Sampling,
    noise: Tensor,
    choose: Chooser | None,
) -> Drafted:
    """Head and sampler, position by position; ``base [R, G, Vd]`` is None where logits wait for the step."""
    drafter, head = parts.drafter, parts.head
    assert isinstance(drafter, Drafter), "a proposer has no steps"
    readout = drafter.readout()
    previous, hidden = anchors, steps(0, anchors)
    memory = head.begin(hidden)
    draw: DrawStep = partial(draw_step, choose=choose)
    if choose is None:
        draw = backend_for(hidden.device, hidden.dtype).draw_step
    columns: list[_Column] = []
    for k in range(noise.shape[1]):
        if k > 0:
            hidden = steps(k, previous)
        step, memory = head.step(previous, hidden, memory)
        logits = readout_logits(hidden, readout) if base is None else base[:, k]
        weight = head.output_weight
        correction = None if step.latent is None or weight is None else (step.latent, weight)
        logits, drawn = draw(logits, correction, sampling, noise[:, k])
        previous = drawn.tokens if readout.target_ids is None else readout.target_ids[drawn.tokens]
        confidence = step.confidence
        if head.confidence == "row_max":
            confidence = _largest_log_odds(logits, sampling, drawn)
        columns.append(_Column(previous, logits, drawn, confidence))
    return _collect(columns, readout, drafter.context.target.vocab_size)


def check_lengths(parts: Parts, lengths: Iterable[int]) -> None:
    """Raise PluginError when one of ``Drafted.lengths``, by now on the host, marks a proposal as none."""
    if min(lengths, default=0) < 0:
        context = parts.drafter.context
        raise PluginError(
            f"drafter {parts.drafter.name!r} proposed a token outside 0..{context.target.vocab_size - 1} or "
            "a length outside 0..G, G being what the anchors ask for; mend the plugin that brings it, or "
            "decode with another drafter"
        )


def draft_survival(
    parts: Parts, drafted: Drafted, device: torch.device, classes: Tensor | None = None
) -> Tensor:
    """Survival ``[R, G]`` of what was drafted, as the policy is told it: ones where it reads none.

    ``classes`` int64 ``[R]`` are the requests' traffic classes, all 0 when None.
    """
    shape, confidence = drafted.draft.tokens.shape, drafted.confidence
    if confidence is None or not parts.policy.needs_confidence:
        return torch.ones(shape, device=device)
    confidence = confidence.to(torch.promote_types(confidence.dtype, torch.float32))
    calibrator = parts.calibrator
    if isinstance(calibrator, OnlineCalibrator):
        conditional = calibrator.conditional(confidence, classes)
    else:
        conditional = calibrator.conditional(confidence)
    return conditional.cumprod(dim=1).to(device)


def _proposed(drafter: Proposer, anchors: Anchors) -> Drafted:
    """A proposal as a draft of one-hot q; the host learns with the verdict if it was none."""
    proposal = drafter.propose(anchors)
    tokens, lengths = proposal.tokens, proposal.lengths
    num, num_draft = len(anchors.slots), anchors.num_draft
    given, allowed = (tokens.dtype, lengths.dtype, *tokens.shape, *lengths.shape), (torch.int64, torch.int64)
    if given != (*allowed, num, num_draft, num):
        raise PluginError(
            f"drafter {drafter.name!r} proposed {tokens.dtype} {list(tokens.shape)} with lengths "
            f"{lengths.dtype} {list(lengths.shape)}; allowed are torch.int64 [{num}, {num_draft}] and [{num}]"
        )
    known = (tokens >= 0) & (tokens < drafter.context.target.vocab_size)
    unread = torch.arange(num_draft, device=lengths.device) >= lengths[:, None]
    sound = (known | unread).all(dim=1) & (lengths >= 0) & (lengths <= num_draft)
    certain = torch.zeros(tokens.shape, device=tokens.device)
    draft = Draft(torch.where(known, tokens, 0), logits=None, log_sum_exp=certain, log_q=certain)
    return Drafted(draft, torch.where(sound, lengths, -1), None)


@dataclass(frozen=True)
class _Column:
    """What one draft position left behind."""

    tokens: Tensor
    logits: Tensor
    drawn: Drawn
    confidence: Tensor | None


def readout_logits(hidden: Tensor, readout: Readout) -> Tensor:
    """softcap(h @ weight.T): ``[..., H]`` to ``[..., Vd]``."""
    logits = linear(hidden, readout.weight.to(hidden.dtype))
    return logits if readout.softcap is None else readout.softcap * torch.tanh(logits / readout.softcap)


def _largest_log_odds(logits: Tensor, sampling: Sampling, drawn: Drawn) -> Tensor:
    """Logit of the row's largest probability: known before the token is drawn, so a policy may read it."""
    return (scale(logits, sampling).amax(dim=-1) - drawn.log_sum_exp).exp().logit(eps=1e-6)


def _collect(columns: list[_Column], readout: Readout, vocab_size: int) -> Drafted:
    def stack(pick: Any) -> Tensor:
        return torch.stack([pick(column) for column in columns], dim=1)

    logits = stack(lambda c: c.logits)
    if readout.target_ids is not None:
        full = logits.new_full((*logits.shape[:2], vocab_size), float("-inf"))
        logits = full.index_copy_(2, readout.target_ids, logits)
    draft = Draft(
        tokens=stack(lambda c: c.tokens),
        logits=logits,
        log_sum_exp=stack(lambda c: c.drawn.log_sum_exp),
        log_q=stack(lambda c: c.drawn.log_q),
    )
    has_confidence = columns[0].confidence is not None
    lengths = torch.full_like(draft.tokens[:, 0], len(columns))
    return Drafted(draft, lengths, stack(lambda c: c.confidence) if has_confidence else None)
