"""The stock parts, objective terms, feature sources and evaluation tasks, by the hook that plugins use."""

from __future__ import annotations

from deepspec.hookspecs import hookimpl


@hookimpl
def deepspec_parts() -> list[str]:
    """Part names and where their classes live."""
    return [
        "none=deepspec.heads.none:NoHead",
        "markov=deepspec.heads.markov:MarkovHead",
        "gated=deepspec.heads.gated:GatedHead",
        "rnn=deepspec.heads.rnn:RnnHead",
        "identity=deepspec.calibrators.identity:IdentityCalibrator",
        "temperature=deepspec.calibrators.temperature:TemperatureCalibrator",
        "sequential=deepspec.calibrators.temperature:SequentialCalibrator",
        "isotonic=deepspec.calibrators.isotonic:IsotonicCalibrator",
        "online=deepspec.calibrators.online:OnlineLogistic",
        "fixed=deepspec.policies.fixed:FixedLength",
        "threshold=deepspec.policies.threshold:ThresholdLength",
        "prefix=deepspec.policies.prefix:PrefixLength",
        "topk=deepspec.policies.topk:TopKLength",
        "cliff=deepspec.policies.cliff:CliffLength",
        "frugal=deepspec.policies.frugal:FrugalLength",
        "token=deepspec.verifiers.token:TokenVerifier",
        "block=deepspec.verifiers.block:BlockVerifier",
        "delta=deepspec.verifiers.delta:DeltaVerifier",
        "ce=deepspec.train.terms:CrossEntropy",
        "soft_ce=deepspec.train.terms:SoftCrossEntropy",
        "l1=deepspec.train.terms:L1Distance",
        "lk=deepspec.train.terms:AcceptanceLikelihood",
        "lk_hybrid=deepspec.train.terms:HybridLikelihood",
        "confidence=deepspec.train.terms:ConfidenceEntropy",
        "online=deepspec.features.source:OnlineFeatures",
        "cached=deepspec.features.cached:CachedFeatures",
        "stdlib=deepspec.evaluate.tasks:Stdlib",
        "prose=deepspec.evaluate.tasks:Prose",
        "gsm8k=deepspec.evaluate.tasks:Gsm8k",
        "math500=deepspec.evaluate.tasks:Math500",
        "humaneval=deepspec.evaluate.tasks:HumanEval",
        "mbpp=deepspec.evaluate.tasks:Mbpp",
        "mt-bench=deepspec.evaluate.tasks:MtBench",
        "alpaca=deepspec.evaluate.tasks:Alpaca",
    ]
