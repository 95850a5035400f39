"""The block rule: judge the drafted tokens as a whole, and keep the longest prefix that passes.

Sun et al. 2025 (2403.10444). It never accepts fewer tokens in expectation than the token rule. It reads every
position's uniform in every round, so those must be keyed by anchor and index, never by the token's own place.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import RoundUniforms, Verifier
from deepspec.kernels import backend_for, reference
from deepspec.types import Draft, TargetRows, Verdict


class BlockVerifier(Verifier):
    """Block verification."""

    name = "block"
    recordable = True
    streams: ClassVar[frozenset[str]] = frozenset({"accept", "residual"})

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        """See :class:`deepspec.interfaces.Verifier`."""
        rule = backend_for(target.logits.device, target.logits.dtype).block_rule
        return rule(target, draft, lengths, uniforms.accept, uniforms.residual)

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Verifier`."""
        return reference.block_outcome(target, draft, lengths)
