"""The five parts of a strategy. A class here is abstract; a class that implements one is final.

The core drives them and is the only one to sample. Once per draft position k it runs::

    hidden = drafter.step(state, k, previous)
    step = head.step(previous, hidden, head_state)
    logits = softcap(hidden @ readout.weight.T) + step.latent @ head.output_weight.T

A model-free drafter, a :class:`Proposer`, gives whole proposals instead.

See ``types.py`` for shape letters. Every part is built from its own frozen ``Config`` and a
:class:`BuildContext`; both arrive through the constructor. Parts hold no request state except in the
slots they were given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from deepspec.calibrator import Calibrator as Calibrator
from deepspec.calibrator import OnlineCalibrator as OnlineCalibrator
from deepspec.calibrator import SeenRounds as SeenRounds
from deepspec.context import BuildContext as BuildContext
from deepspec.context import LayerTraits as LayerTraits
from deepspec.context import Readout as Readout
from deepspec.context import Rope as Rope
from deepspec.context import TargetInfo as TargetInfo
from deepspec.curves import SpsCurve
from deepspec.parts import Part as Part
from deepspec.parts import PartConfig as PartConfig
from deepspec.parts import TokenCount as TokenCount
from deepspec.parts import TokenId as TokenId
from deepspec.types import (
    AnchorBlocks,
    Anchors,
    Draft,
    Extension,
    Features,
    Load,
    Proposal,
    TargetRows,
    TokenBatch,
    Verdict,
)

StateT = TypeVar("StateT")


class BaseDrafter(Part, nn.Module):
    """What both kinds of drafter share: :class:`Drafter`, a model, and :class:`Proposer`, which is none.

    State made after an ``extend`` is thrown away before the next one: that is the whole rollback.
    """

    kind = "drafter"
    #: Whether the drafter has weights to train.
    trainable: ClassVar[bool] = True
    #: Whether it reads ``features.last_hidden``; a cache for one that does not keeps less of that.
    reads_last_hidden: ClassVar[bool] = True

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.context = context

    @property
    def pretrained(self) -> bool:
        """Whether it is of use as it is built, since its weights come from elsewhere or it has none.

        ``deepspec eval --strategy`` and :func:`deepspec.load` of a strategy refuse a drafter that is not.
        """
        return not self.trainable

    @property
    @abstractmethod
    def target_layers(self) -> tuple[int, ...]:
        """Decoder layers to tap, 0-based, never the last; empty when the drafter reads none."""

    @property
    def saved_options(self) -> Mapping[str, object]:
        """Options that build it for a checkpoint's weights, also when it took its own from elsewhere."""
        return self.config.model_dump(exclude_unset=True)

    @property
    def reserved_token_ids(self) -> tuple[int, ...]:
        """Token ids to which the drafter gives a meaning of its own; training refuses text that uses them."""
        return ()

    @abstractmethod
    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """Make room for ``num_slots`` requests of up to ``max_positions`` committed tokens.

        An engine calls this on a shallow copy of the drafter: attributes set here are that engine's own,
        weights are shared.
        """

    @abstractmethod
    def extend(self, extension: Extension) -> None:
        """Take in committed text: every prefill chunk and every round, also when nothing was drafted.

        Positions may repeat earlier ones after a preemption and then replace them.
        """

    @abstractmethod
    def release(self, slot: int) -> None:
        """Forget a request."""


class Drafter(BaseDrafter, Generic[StateT]):
    """What hidden state predicts position k? ``StateT`` is private to the drafter."""

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """H."""

    @abstractmethod
    def readout(self) -> Readout:
        """The output weights; logits = softcap(h @ weight.T) + latent @ W_out.T."""

    def choose_vocabulary(self, counts: Tensor, required: Sequence[int]) -> float | None:
        """Before a run's first step: settle which tokens can be drafted, where that is not all.

        int64 ``counts [V]`` is how often each is a label in the text; ``required`` ids stay in any case.
        Returns the share of labels that can be drafted, None when nothing is left out.
        """
        return None

    @abstractmethod
    def begin(self, anchors: Anchors) -> StateT:
        """Start a round for R requests; parallel drafters compute the whole block here."""

    @abstractmethod
    def step(self, state: StateT, k: int, previous: Tensor) -> Tensor:
        """Hidden states ``[R, H]`` after the final norm, for 0-based position k, given tokens ``[R]``."""

    def parallel_hidden(self, state: StateT) -> Tensor | None:
        """All hidden states ``[R, G, H]`` at once when no ``step`` depends on ``previous``, else None.

        The core then reads all base logits in one product; ``step`` must give the same rows.
        """
        return None

    @abstractmethod
    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        """Training: hidden states ``[N, G, H]`` with the true tokens as inputs.

        Equal to ``step`` when the samples are forced to the labels.
        """


class Proposer(BaseDrafter):
    """A model-free drafter: which tokens may follow, judging by the request's own text?

    It keeps what it needs of the text that :meth:`extend` brings, in the slots that :meth:`allocate` made.
    What it proposes is recorded as certain (one-hot q), so it takes no head and gives no confidence.
    """

    trainable = False

    @property
    def target_layers(self) -> tuple[int, ...]:
        """None: a proposer reads no features."""
        return ()

    @abstractmethod
    def propose(self, anchors: Anchors) -> Proposal:
        """At most ``anchors.num_draft`` tokens for each of R requests, from its own text up to its anchor.

        A function of that text alone: neither of other requests' nor of what was proposed and refused. Runs
        without waiting for the device. Tokens outside the vocabulary and lengths outside 0..G are refused.
        """


@dataclass(frozen=True)
class HeadStep:
    """One position's output of a head.

    Attributes:
        latent: ``[R, Z]``, or None when Z = 0.
        confidence: ``[R]`` logit of conditional acceptance, or None when confidence comes from elsewhere.
    """

    latent: Tensor | None
    confidence: Tensor | None


class SequentialHead(Part, nn.Module, Generic[StateT]):
    """How does the token just drafted change the next logits?"""

    kind = "head"

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.context = context

    @property
    @abstractmethod
    def output_weight(self) -> Tensor | None:
        """W_out ``[Vd, Z]``, or None when Z = 0."""

    @property
    @abstractmethod
    def confidence(self) -> str:
        """``linear`` (trained, from the step), ``row_max`` (largest probability of the row), or ``none``.

        Never the probability of the token that was drawn: deciding by it biases the output.
        """

    @abstractmethod
    def begin(self, hidden: Tensor) -> StateT:
        """State s_0 for requests whose first hidden states are ``[R, H]``."""

    @abstractmethod
    def step(self, previous: Tensor, hidden: Tensor, state: StateT) -> tuple[HeadStep, StateT]:
        """``previous`` int64 ``[R]`` in target ids, ``hidden`` ``[R, H]``."""

    @abstractmethod
    def block(self, previous: Tensor, hidden: Tensor) -> HeadStep:
        """Training: ``[N, G]`` and ``[N, G, H]`` in, latent ``[N, G, Z]`` and confidence ``[N, G]`` out."""


class LengthPolicy(Part, ABC):
    """How much to draft, and how much to verify?"""

    kind = "policy"
    #: Whether ``lengths`` reads ``survival``; when not, no confidence is computed for it and it is all ones.
    needs_confidence: ClassVar[bool] = True
    #: Whether ``lengths`` reads ``load.steps_per_second``, which an engine takes from ``curve``.
    needs_curve: ClassVar[bool] = False
    #: The SPS curve that the options name.
    curve: SpsCurve | None = None

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.config = config
        self.context = context

    def draft_length(self, load: Load) -> int:
        """How many tokens to draft this round, from the past only; 0 skips the drafter."""
        return self.context.draft_length

    @abstractmethod
    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        """Verify lengths int64 ``[R]`` <= ``drafted``, on device, from survival ``[R, G]``.

        Jointly non-anticipating: changing every conditional confidence past position l_r + 1, in all
        requests at once, must leave the whole vector unchanged.
        """


@dataclass(frozen=True)
class RoundUniforms:
    """The uniforms of one round in [0, 1), from disjoint streams; those the verifier does not read are empty.

    Attributes:
        accept: ``[R, G]``. residual: ``[R, 2]``, choice of a block of the vocabulary and choice inside it.
        delta: ``[R, G+1, 2]``, likewise, keyed by the absolute position of the token drawn.
    """

    accept: Tensor
    residual: Tensor
    delta: Tensor


class Verifier(Part, ABC):
    """Which prefix is kept, and what token closes the round?"""

    kind = "verifier"
    #: Which of the uniforms the rule reads, so that the others need not be made.
    streams: ClassVar[frozenset[str]]

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        self.config = config
        self.context = context

    @abstractmethod
    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        """Decide one round of R requests; ``lengths`` is int64 ``[R]``, at most what each drafted."""

    @abstractmethod
    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        """The exact law of :meth:`verify` over its uniforms, which ``deepspec check`` sums and compares.

        Returns:
            float64 ``[R, G+1, V]``: the probability of accepting exactly a tokens and closing with v.
        """
