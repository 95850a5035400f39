"""What a feature source is, and the one that needs nothing stored: the frozen target's forward at each step.

A plugin adds one by returning a subclass of :class:`FeatureSource` from ``deepspec_parts``; it is chosen by
``features.source``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepspec.interfaces import BaseDrafter, Part
from deepspec.target import Target, load_target
from deepspec.types import Features, TokenBatch

if TYPE_CHECKING:
    from deepspec.config import RunConfig
    from deepspec.data import TokenizedCorpus


@dataclass(frozen=True)
class SourceContext:
    """What a feature source is made for.

    Attributes:
        config: the run's; a source reads ``config.features``.
        target: as :meth:`FeatureSource.open_target` gave it.
        layers: the K decoder layers that the drafter taps.
        reads_last_hidden: whether the drafter reads ``last_hidden``, which the loss does in any case.
    """

    config: RunConfig
    target: Target
    layers: tuple[int, ...]
    reads_last_hidden: bool

    @classmethod
    def of(cls, config: RunConfig, target: Target, drafter: BaseDrafter) -> SourceContext:
        """For a drafter."""
        return cls(config, target, drafter.target_layers, drafter.reads_last_hidden)


class FeatureSource(Part):
    """Where do the features of training text come from?"""

    kind = "feature source"

    @classmethod
    def open_target(cls, config: RunConfig, device: str) -> Target:
        """As much of the target as training with this source needs; by default all of it."""
        return load_target(config.target, device=device)

    def __init__(self, context: SourceContext) -> None:
        self.context = context

    def check(self, texts: Sequence[TokenizedCorpus]) -> None:
        """Before the first step: raise DataError when some of these texts' features cannot be had."""
        return

    @abstractmethod
    def features(self, batch: TokenBatch) -> Features:
        """Features ``[S, L, K*D]`` and ``[S, L, D]`` of ``batch``, which is on CPU; padding is zero.

        The same batch has the same features every time. What a draft block cannot read may be anything
        finite: both from a document's last possible anchor on, but for ``last_hidden`` where an anchor or a
        label stands before a label; and all other ``last_hidden`` when the drafter reads none.
        """


class OnlineFeatures(FeatureSource):
    """The frozen target's forward in this process."""

    name = "online"

    def features(self, batch: TokenBatch) -> Features:
        """Of every position, in the target's float type and on its device."""
        return self.context.target.features(batch.to(self.context.target.device), self.context.layers)
