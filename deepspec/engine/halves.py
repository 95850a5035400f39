"""The two halves of a round's device work: from the drafter's forward to the verify lengths, and from the
target's hidden states to the verdict. Each is a function of tensors, so it can be recorded and replayed
(``capture.py``); the forwards, which read and write their caches, stay outside.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from deepspec.engine.capture import Captured, Recorder, cuda_graphs, takes_graphs
from deepspec.engine.draft import Drafted, draft_block, draft_survival, run_draft
from deepspec.interfaces import Drafter, RoundUniforms
from deepspec.strategy import Parts
from deepspec.target import DecodingTarget
from deepspec.types import Anchors, Draft, Load, Sampling, TargetRows, Verdict

log = logging.getLogger(__name__)


class Halves:
    """Both halves for one target and one set of parts; replayed on a CUDA device unless it is turned off."""

    def __init__(self, target: DecodingTarget, parts: Parts) -> None:
        self.target, self.parts = target, parts
        self.captured_block: Captured[tuple[Drafted, Tensor]] | None = None
        self.captured_verdict: Captured[Verdict] | None = None
        self._survivals: deque[Tensor] = deque(maxlen=2)
        if takes_graphs(target.device):
            self.capture(cuda_graphs)

    def capture(self, recorder: Callable[[torch.device], Recorder]) -> None:
        """From now on record what the parts allow to; the log says what not."""
        device, parts = self.target.device, self.parts
        refusals = _why_no_block(parts, device)
        if not refusals:
            self.captured_block = Captured(self._block, recorder(device), lends=True)
        if parts.verifier.recordable:
            block = self.captured_block
            self.captured_verdict = Captured(self._read_and_verify, recorder(device), borrows_from=block)
        else:
            refusals.append(f"verifier {parts.verifier.name!r} is not recordable")
        if refusals:
            log.info("CUDA graphs hold no more than a part of a round: %s", "; ".join(refusals))

    @property
    def earlier_survival(self) -> Tensor | None:
        """Survival two rounds that drafted ago, on the target's device; a recorded half keeps none."""
        return self._survivals[0] if len(self._survivals) == 2 else None

    def draft(
        self, start: Anchors, sampling: Sampling, noise: Tensor, load: Load, classes: Tensor
    ) -> tuple[Drafted, Tensor]:
        """What was drafted, on the drafter's device, and the verify lengths int64 ``[R]`` on the target's.

        ``classes`` int64 ``[R]`` are traffic classes. The tensors may be overwritten by the next call.
        """
        drafter = self.parts.drafter
        # A step with prompts in it is hardly ever like another.
        if self.captured_block is not None and isinstance(drafter, Drafter) and not load.prefill_tokens:
            hidden = drafter.parallel_hidden(drafter.begin(start))
            if hidden is not None:
                return self.captured_block(hidden, start.tokens, sampling, noise, _of_now(load), classes)
            self.captured_block = None
            log.info("CUDA graphs hold no drafts: drafter %r steps by itself", drafter.name)
        drafted = run_draft(self.parts, start, sampling, noise)
        survival, lengths = self._lengths(drafted, load, classes)
        self._survivals.append(survival)
        return drafted, lengths

    def verify(
        self,
        hidden: Tensor,
        starts: Tensor,
        sampling: Sampling,
        draft: Draft,
        lengths: Tensor,
        noise: RoundUniforms,
    ) -> Verdict:
        """The verdict on target states ``hidden [B, D]``, whose ``starts [R]`` are each request's first."""
        work = self.captured_verdict or self._read_and_verify
        return work(hidden, starts, sampling, draft, lengths, noise)

    def _block(
        self,
        hidden: Tensor,
        anchors: Tensor,
        sampling: Sampling,
        noise: Tensor,
        load: Load,
        classes: Tensor,
    ) -> tuple[Drafted, Tensor]:
        drafted = draft_block(self.parts, hidden, anchors, sampling, noise)
        return drafted, self._lengths(drafted, load, classes)[1]

    def _lengths(self, drafted: Drafted, load: Load, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Survival ``[R, G]`` and verify lengths ``[R]`` on the target's device."""
        counts = drafted.lengths.to(self.target.device)
        survival = draft_survival(self.parts, drafted, self.target.device, classes)
        return survival, self.parts.policy.lengths(survival, counts.clamp(min=0), load)

    def _read_and_verify(
        self,
        hidden: Tensor,
        starts: Tensor,
        sampling: Sampling,
        draft: Draft,
        lengths: Tensor,
        noise: RoundUniforms,
    ) -> Verdict:
        rows = TargetRows(self.target.logits(hidden), starts, sampling)
        return self.parts.verifier.verify(rows, draft, lengths, noise)


def _of_now(load: Load) -> Load:
    """Without the past, which no recordable policy reads, so that one recording serves all rounds."""
    return Load(load.num_requests, load.prefill_tokens, load.steps_per_second)


def _why_no_block(parts: Parts, device: torch.device) -> list[str]:
    """Why what follows the drafter's forward cannot be recorded, nothing where it can."""
    if not isinstance(parts.drafter, Drafter):
        return [f"drafter {parts.drafter.name!r} proposes without logits"]
    if parts.drafter.context.target.embedding.device != device:
        return ["drafter and target are on different devices"]
    others = (parts.head, parts.calibrator, parts.policy)
    return [f"{part.kind} {part.name!r} is not recordable" for part in others if not part.recordable]
