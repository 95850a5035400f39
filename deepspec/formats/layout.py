"""What a checkpoint layout is: it knows its own, reads it as a strategy, writes it, and who can load it.

Nothing here reads weights: :mod:`deepspec.formats.opened` and :mod:`deepspec.formats.export` do, alike for
all layouts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from deepspec.formats.header import Header
from deepspec.formats.names import NameTable
from deepspec.interfaces import Part
from deepspec.nn import RMSNorm
from deepspec.strategy import Parts, Strategy

if TYPE_CHECKING:
    from deepspec.target import Target


@dataclass(frozen=True)
class TargetClaim:
    """What a checkpoint says of its target; None where it says nothing."""

    hidden_size: int
    vocab_size: int
    num_layers: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class SharedCopy:
    """A tensor of the file that is a copy of one of the target's.

    Attributes:
        tensor: its name in the file. of: which of the target's.
        option: the drafter's option with which it has one of its own, for a copy that differs; None where
            the layout has none but copies, so that a differing one is another target's.
    """

    tensor: str
    of: Literal["embedding", "lm_head"]
    option: str | None = None


#: Of layouts that can hold no other embedding or LM head than the target's.
TARGET_COPIES = (SharedCopy("embed_tokens.weight", "embedding"), SharedCopy("lm_head.weight", "lm_head"))


@dataclass(frozen=True)
class Layout:
    """How one checkpoint is to be read.

    Attributes:
        strategy: what the checkpoint is a drafter of.
        table: names of its tensors.
        claim: of its target.
        copies: of the target's tensors. ignored: tensors that others make up for.
        facts: for ``inspect``: what breaks silently when it is read otherwise.
        fields: its whole configuration, for writing it again.
        within: beginning of the names of its tensors, where the file is its target's, too.
        sets_length: whether the file says how many tokens are drafted, so that nobody else may.
    """

    strategy: Strategy
    table: NameTable
    claim: TargetClaim
    copies: tuple[SharedCopy, ...] = ()
    ignored: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    within: str = ""
    sets_length: bool = True


@dataclass(frozen=True)
class Draft:
    """A drafter to be written.

    Attributes:
        parts: with their weights. target: what it drafts for. target_name: what others call that.
        fields: the configuration that it was read with, where that was of the same layout; else empty.
    """

    parts: Parts
    target: Target
    target_name: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def weights(self) -> dict[str, Tensor]:
        """By our names; norms as what they multiply by."""
        modules = self.parts.modules()
        return norm_factors(modules.state_dict(), modules, add=1)


@dataclass(frozen=True)
class Written:
    """A checkpoint's content.

    Attributes:
        config: its config.json. tensors: by the layout's names.
        with_target: whether it is to lie in the target's own checkpoint, as one model with it.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    with_target: bool = False


@dataclass(frozen=True)
class EngineVerdict:
    """Whether an engine can load a checkpoint.

    Attributes:
        loads: None where nobody has tried.
        why: why it cannot, or what to mind.
        command: the line that serves it, with ``{target}`` and ``{draft}`` for places; empty without one.
        scheduling: flags that name the files by which it schedules, of ``sts`` (temperatures) and ``sps``.
    """

    engine: str
    loads: bool | None
    why: str = ""
    command: str = ""
    scheduling: Mapping[str, str] = field(default_factory=dict)


class CheckpointFormat(Part, ABC):
    """A layout of checkpoints, made without arguments.

    Attributes:
        exports: the names by which ``deepspec export --to`` asks for it.
    """

    kind = "format"
    exports: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def looked_for(self) -> str:
        """What :meth:`recognise` looks for, in a few words."""

    @abstractmethod
    def recognise(self, header: Header) -> str | None:
        """By what the checkpoint is of this layout; None when it is not."""

    @abstractmethod
    def read(self, header: Header) -> Layout:
        """How to read the checkpoint; raises ConfigError where its fields contradict each other."""

    @abstractmethod
    def cannot_hold(self, parts: Parts) -> str | None:
        """What of a drafter the layout has no place for, and what to do; None when it can be written."""

    @abstractmethod
    def write(self, draft: Draft) -> Written:
        """The checkpoint of a drafter that it can hold."""

    @abstractmethod
    def engines(self, header: Header, layout: Layout) -> tuple[EngineVerdict, ...]:
        """Which engines load this checkpoint, and how."""


def norm_factors(weights: Mapping[str, Tensor], modules: nn.Module, *, add: int) -> dict[str, Tensor]:
    """Weights of which those of norms that multiply by 1 + weight have ``add`` added to them."""
    offset = {
        f"{name}.weight"
        for name, module in modules.named_modules()
        if isinstance(module, RMSNorm) and module.unit_offset
    }
    return {name: tensor + add if name in offset else tensor for name, tensor in weights.items()}


def kept_config(draft: Draft, fresh: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json: what it was read with, else ``fresh``, and over it ``ours``, the drafter's fields."""
    return {**(draft.fields or fresh), **ours}
