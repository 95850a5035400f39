"""The values that cross seams, all frozen, and the shape letters used everywhere.

    R requests            T packed tokens        G draft positions     N anchor blocks in training
    V target vocabulary   Vd draft vocabulary    D target hidden       H draft hidden
    K tapped layers       Z latent width of a sequential head          S sequences (rows) of a batch

Data flows TokenBatch -> Features -> hidden -> Draft -> lengths -> Verdict -> RoundRecord. Tensors that
are indexed by request use the order of ``slots``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from deepspec.records import RequestRound as RequestRound
from deepspec.records import RoundRecord as RoundRecord
from deepspec.records import StepRecord as StepRecord
from deepspec.records import TracedStep as TracedStep


@dataclass(frozen=True)
class TokenBatch:
    """Training text: rows of whole or packed documents.

    Attributes:
        tokens: int64 ``[S, L]``.
        segments: int64 ``[S, L]``, which document of its row a token belongs to, -1 on padding.
        positions: int64 ``[S, L]``, the token's position inside its document.
        supervised: bool ``[S, L]``, whether the token may be a label.
    """

    tokens: Tensor
    segments: Tensor
    positions: Tensor
    supervised: Tensor

    def to(self, device: object) -> TokenBatch:
        """The same batch on ``device``."""
        parts = (self.tokens, self.segments, self.positions, self.supervised)
        return TokenBatch(*(part.to(device) for part in parts))  # type: ignore[call-overload]


@dataclass(frozen=True)
class Features:
    """What a target forward leaves for drafters, row by row of its input.

    Attributes:
        tapped: ``[..., K*D]``, outputs of the tapped decoder layers, concatenated in the order of their ids.
        last_hidden: ``[..., D]``, the target's hidden state after its final norm.
    """

    tapped: Tensor
    last_hidden: Tensor


@dataclass(frozen=True)
class AnchorBlocks:
    """Sampled training blocks; slot k of a block predicts the token at ``position + k + 1``.

    Attributes:
        rows: int64 ``[N]``, the batch row of each anchor.
        columns: int64 ``[N]``, the anchor's column in its row.
        labels: int64 ``[N, G]``, the G tokens after the anchor (0 where ``valid`` is false).
        previous: int64 ``[N, G]``, the token before each label: the anchor, then the labels.
        valid: bool ``[N, G]``, whether the labels up to and including k exist, belong to the anchor's
            document and are supervised.
    """

    rows: Tensor
    columns: Tensor
    labels: Tensor
    previous: Tensor
    valid: Tensor


class Span(NamedTuple):
    """Consecutive tokens of one request, host side: its slot, the first token's position, how many."""

    slot: int
    start: int
    length: int


def as_range(slots: Sequence[int]) -> slice | None:
    """The slots as a slice, None when they do not follow one another."""
    whole = range(slots[0], slots[0] + len(slots))
    return slice(whole.start, whole.stop) if list(slots) == list(whole) else None


@dataclass(frozen=True)
class Extension:
    """Newly committed text of some requests, packed request after request.

    Attributes:
        slots: int64 ``[R]``, distinct.
        spans: the same rows, host side: R spans one after the other.
        rows: int64 ``[T]``, for each packed token, the slot it belongs to.
        positions: int64 ``[T]``, absolute positions, consecutive inside a request.
        tokens: int64 ``[T]``, the tokens at those positions.
        next_tokens: int64 ``[T]``, the token one position later; a request's last is its new anchor.
        features: target features of the same T tokens.
    """

    slots: Tensor
    spans: tuple[Span, ...]
    rows: Tensor
    positions: Tensor
    tokens: Tensor
    next_tokens: Tensor
    features: Features


@dataclass(frozen=True)
class Anchors:
    """Where a round starts.

    Attributes:
        slots: int64 ``[R]``.
        tokens: int64 ``[R]``, the anchor tokens x_0.
        positions: int64 ``[R]``, their absolute positions.
        spans: the same anchors, host side, so that nobody has to ask the device: R spans of length 1.
        num_draft: how many tokens will be drafted at most this round.
    """

    slots: Tensor
    tokens: Tensor
    positions: Tensor
    spans: tuple[Span, ...]
    num_draft: int

    @cached_property
    def max_position(self) -> int:
        """The largest position."""
        return max(span.start for span in self.spans)

    @cached_property
    def slot_range(self) -> slice | None:
        """The slots as a slice when they follow one another, else None."""
        return as_range([span.slot for span in self.spans])


@dataclass(frozen=True)
class Sampling:
    """Per-request sampling parameters on device; a field is None when no request of the batch uses it.

    Attributes:
        temperature: float ``[R]``; 0 is greedy.
        top_k: int64 ``[R]``, V where off.
        top_p, min_p: float ``[R]``, 1 and 0 where off.
        any_greedy: whether some temperature is 0 (host side).
        unit: whether every temperature is 1 (host side).
    """

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    any_greedy: bool
    unit: bool


@dataclass(frozen=True)
class Draft:
    """What was drafted and the very rows it was drawn from.

    Attributes:
        tokens: int64 ``[R, G]`` in target ids.
        logits: ``[R, G, V]``, the stored rows, -inf outside the draft vocabulary; None for one-hot q.
        log_sum_exp: ``[R, G]``, of the rows after temperature, computed from the stored values.
        log_q: ``[R, G]``, log-probability of the drawn token.
    """

    tokens: Tensor
    logits: Tensor | None
    log_sum_exp: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Proposal:
    """What a model-free drafter proposes, G being ``Anchors.num_draft``.

    Attributes:
        tokens: int64 ``[R, G]`` in target ids; those past a request's length are not read.
        lengths: int64 ``[R]`` in 0..G, how many are proposed; a request with none decodes plainly this round.
    """

    tokens: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class TargetRows:
    """What the target said of a round, packed.

    Attributes:
        logits: ``[B, V]``; row ``starts[r] + k`` scores draft position k of request r, and the row after a
            request's last verified token gives its bonus.
        starts: int64 ``[R]``.
        sampling: the requests' parameters, applied to these rows and nowhere else.
    """

    logits: Tensor
    starts: Tensor
    sampling: Sampling


@dataclass(frozen=True)
class Verdict:
    """How a round ended.

    Attributes:
        accepted: int64 ``[R]``, accepted draft tokens, 0 <= accepted <= verify length.
        bonus: int64 ``[R]``, the token that closes the round.
    """

    accepted: Tensor
    bonus: Tensor


@dataclass(frozen=True)
class Load:
    """What a length policy may know of the step besides confidences.

    Attributes:
        num_requests: R, requests that take part in this round.
        prefill_tokens: prompt tokens in the same target step; they count in B.
        steps_per_second: float64 ``[L]``, the policy's SPS curve at B = 1..L on its device; None without one.
        past_survival: the past's P(accepted >= j) for j = 1..G; empty before the first verdict.
        past_verified, past_accepted: of past rounds that drafted all G tokens, the share of requests of which
            at least j were verified, and accepted, for j = 1..G; empty without such a round.
        rounds_short: rounds since one that drafted all G tokens.
        earlier_survival: on device ``[R', G']``, of two drafting rounds before; None without one.
    """

    num_requests: int
    prefill_tokens: int = 0
    steps_per_second: Tensor | None = None
    past_survival: tuple[float, ...] = ()
    past_verified: tuple[float, ...] = ()
    past_accepted: tuple[float, ...] = ()
    rounds_short: int = 0
    earlier_survival: Tensor | None = None
