"""The block rule: every position is tested against the product of ratios up to it, and the last that passes
is kept, so that one bad token need not end a good block.

Sun et al. 2024 (2403.10444). It accepts no fewer tokens than the token rule in expectation, keeps the same
law, and lengths may be whatever that rule allows. Accept and residual read disjoint streams.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import RoundUniforms, Verifier
from deepspec.kernels import backend_for, reference
from deepspec.types import Draft, TargetRows, Verdict


class BlockVerifier(Verifier):
    """Speculative sampling, one joint test of the block."""

    name = "block"
    streams: ClassVar[frozenset[str]] = frozenset({"accept", "residual"})

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        """See :class:`deepspec.interfaces.Verifier`."""
        rule = backend_for(target.logits.device).block_rule
        return rule(target, draft, lengths, uniforms.accept, uniforms.residual)

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Verifier`."""
        return reference.block_outcome(target, draft, lengths)
