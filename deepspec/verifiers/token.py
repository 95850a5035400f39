"""The token rule: accept each draft token with probability min(1, p/q), else resample the difference.

Leviathan 2023 (2211.17192), Chen 2023 (2302.01318). The accept and the residual draw read disjoint streams.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from deepspec.interfaces import RoundUniforms, Verifier
from deepspec.kernels import backend_for, reference
from deepspec.types import Draft, TargetRows, Verdict


class TokenVerifier(Verifier):
    """Speculative sampling, one independent test a token."""

    name = "token"
    recordable = True
    streams: ClassVar[frozenset[str]] = frozenset({"accept", "residual"})

    def verify(self, target: TargetRows, draft: Draft, lengths: Tensor, uniforms: RoundUniforms) -> Verdict:
        """See :class:`deepspec.interfaces.Verifier`."""
        rule = backend_for(target.logits.device, target.logits.dtype).token_rule
        return rule(target, draft, lengths, uniforms.accept, uniforms.residual)

    def outcome(self, target: TargetRows, draft: Draft, lengths: Tensor) -> Tensor:
        """See :class:`deepspec.interfaces.Verifier`."""
        return reference.token_outcome(target, draft, lengths)
