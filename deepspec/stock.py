"""The stock parts, registered through the same hook that plugins use."""

from __future__ import annotations

from deepspec.hookspecs import hookimpl


@hookimpl
def deepspec_parts() -> list[str]:
    """Part names and where their classes live."""
    return [
        "none=deepspec.heads.none:NoHead",
        "markov=deepspec.heads.markov:MarkovHead",
        "identity=deepspec.calibrators.identity:IdentityCalibrator",
        "fixed=deepspec.policies.fixed:FixedLength",
        "threshold=deepspec.policies.threshold:ThresholdLength",
        "token=deepspec.verifiers.token:TokenVerifier",
        "delta=deepspec.verifiers.delta:DeltaVerifier",
    ]
