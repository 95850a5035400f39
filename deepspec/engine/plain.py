"""Plain decoding in the same engine: a drafter that drafts nothing, and the delta rule."""

from __future__ import annotations

import torch
from torch import Tensor

from deepspec.calibrators.identity import IdentityCalibrator
from deepspec.heads.none import NoHead, NoHeadConfig
from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout, TargetInfo
from deepspec.policies.fixed import FixedLength
from deepspec.strategy import Parts, Strategy
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch
from deepspec.verifiers.delta import DeltaVerifier


class NoDrafter(Drafter[None]):
    """Never asked to draft."""

    name = "none"
    trainable = False

    @property
    def hidden_size(self) -> int:
        return self.context.target.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return ()

    def readout(self) -> Readout:
        return Readout(self.context.target.lm_head)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        """Keeps nothing."""

    def extend(self, extension: Extension) -> None:
        """Keeps nothing."""

    def begin(self, anchors: Anchors) -> None:
        raise AssertionError("plain decoding drafts nothing")

    def step(self, state: None, k: int, previous: Tensor) -> Tensor:
        raise AssertionError("plain decoding drafts nothing")

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        raise AssertionError("plain decoding trains nothing")

    def release(self, slot: int) -> None:
        """Keeps nothing."""


def plain_parts(target: TargetInfo) -> Parts:
    """Parts for plain decoding: one target forward a token, drawn by absolute position."""
    context = BuildContext(target=target, draft_length=0, hidden_size=target.hidden_size)
    config = PartConfig()
    return Parts(
        strategy=Strategy(name="plain", drafter="none", verifier="delta"),
        drafter=NoDrafter(config, context),
        head=NoHead(NoHeadConfig(), context),
        calibrator=IdentityCalibrator(config, context),
        policy=FixedLength(FixedLength.Config(), context),
        verifier=DeltaVerifier(config, context),
    )
