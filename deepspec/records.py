"""What observers are told, rounds and steps, and what training took. Host side, all frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RequestRound:
    """One request's share of a round, host side.

    Attributes:
        request_id: the engine's number of the request.
        drafted, verified, accepted: counts with ``accepted <= verified <= drafted``.
        emitted: tokens that joined the output: accepted + 1, fewer when a stop token or the maximum cut it.
        stopped: whether a stop token ended the request in this round.
        tokens: the emitted tokens.
        rejected: the first draft token that was refused, or None.
    """

    request_id: int
    drafted: int
    verified: int
    accepted: int
    emitted: int
    stopped: bool
    tokens: tuple[int, ...]
    rejected: int | None = None


@dataclass(frozen=True)
class RoundRecord:
    """One engine step, as ``deepspec_round_verified`` observers see it; nothing past a rejection is exposed.

    Attributes:
        requests: the requests that were verified in this step.
        verify_tokens: B, tokens in the target step, prefill included.
        prefill_tokens: how many of them were prompt tokens.
        draft_ms, verify_ms, other_ms: wall time of drafting, of target forward and verdict, of the rest.
        kv_tokens: positions held in the target's KV slots after the step.
    """

    requests: tuple[RequestRound, ...]
    verify_tokens: int
    prefill_tokens: int
    draft_ms: float
    verify_ms: float
    other_ms: float
    kv_tokens: int


@dataclass(frozen=True)
class TracedStep:
    """An engine step with what is needed to calibrate and to replay it, for traces alone.

    What lies past a refused token is in it, so nothing that decides on later rounds may read it.

    Attributes:
        record: the step.
        positions: absolute position of each request's anchor, in the order of ``record.requests``.
        classes: their traffic classes.
        confidence: float32 ``[R, G]`` logits, NaN where the head gives none.
        chances: float32 ``[R, G]``, sum over v of min(p, q) given the tokens before, NaN past the verified.
    """

    record: RoundRecord
    positions: tuple[int, ...]
    classes: tuple[int, ...]
    confidence: NDArray[np.float32]
    chances: NDArray[np.float32]


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, as ``deepspec_step_trained`` observers see it.

    Attributes:
        step: 1-based.
        num_steps: planned steps.
        loss: the weighted total; ``terms`` holds each term before weighting.
        expected_accepted_length: 1 + sum over k of the product of (1 - TV) up to k, on the batch of the last
            step that measured it.
        learning_rate: the peak times the schedule's factor.
        gradient_norm: before clipping.
        tokens_per_s: tokens of training text per second over the last ``train.log_every`` steps, without
            what lies between steps (checkpoints, validations).
        seconds_left: estimate of the remaining training time.
    """

    step: int
    num_steps: int
    loss: float
    terms: dict[str, float] = field(default_factory=dict)
    expected_accepted_length: float = 0.0
    learning_rate: float = 0.0
    gradient_norm: float = 0.0
    tokens_per_s: float = 0.0
    seconds_left: float = 0.0


@dataclass(frozen=True)
class TrainingCost:
    """What training took; None for what a run does not say, as older ones say nothing of FLOPs.

    Attributes:
        train_tokens: of text, padding left out.
        train_seconds: in optimiser steps, without validations and checkpoints.
        train_flops: floating-point operations of the steps (``train/flops.py`` says which are counted).
        train_flops_target: those among them of the frozen target's forward, which makes the features.
    """

    train_tokens: int | None = None
    train_seconds: float | None = None
    train_flops: int | None = None
    train_flops_target: int | None = None

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> TrainingCost:
        """What a checkpoint's ``state.json`` says."""
        return cls(**{field.name: state.get(field.name) for field in fields(cls)})

    def __add__(self, other: TrainingCost) -> TrainingCost:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return TrainingCost(*(None if a is None or b is None else a + b for a, b in pairs))
