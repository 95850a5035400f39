"""What every part of a strategy is: a name, a kind, and a frozen configuration of its own."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, NewType

from pydantic import BaseModel, ConfigDict


class PartConfig(BaseModel):
    """Base of every part's ``Config``: frozen, unknown keys are errors, a default is written once."""

    model_config = ConfigDict(frozen=True, extra="forbid")


#: Type of an option that is a token id of the target. ``deepspec check``, whose targets have a handful of
#: tokens, puts one of those in the place of a larger id.
TokenId = NewType("TokenId", int)

#: Type of an option that is a number of the target's tokens, likewise.
TokenCount = NewType("TokenCount", int)


class Part(ABC):
    """What all five kinds share: a name to select it by, and a configuration class of its own."""

    name: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type[PartConfig]] = PartConfig
    #: Whether its share of a round may be recorded once and replayed as a CUDA graph: a function of its
    #: tensors, and of weights that change in their place or not at all, that never waits for the device and
    #: reads no past.
    recordable: ClassVar[bool] = False
