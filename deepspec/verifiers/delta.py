"""The delta rule: draw the target's token first, accept the draft while it equals that.

Needs no q. With noise keyed by (seed, absolute position) its output equals plain decoding's with the
same seed for any drafter and any lengths, which makes it the oracle of the other tests.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import RoundUniforms, Verifier
from deepspec.kernels import backend_for, reference
from deepspec.types import Draft, TargetRows, Verdict


class DeltaVerifier(Verifier):
    """Exact match against the target's own draw."""

    name = "delta"
    recordable = True
    streams: ClassVar[frozenset[str]] = frozenset({"delta"})

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        """See :class:`deepspec.interfaces.Verifier`."""
        rule = backend_for(target.logits.device, target.logits.dtype).delta_rule
        return rule(target, draft, lengths, uniforms.delta)

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Verifier`."""
        return reference.delta_outcome(target, draft, lengths)
