"""What an evaluation found, and its JSON, whose keys others read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deepspec.evaluate.acceptance import Interval, PositionRates

SCHEMA = 1


@dataclass(frozen=True)
class TaskResult:
    """One task's accepted length; None when no prompt lasted a round."""

    accepted_length: Interval | None
    num_prompts: int


@dataclass(frozen=True)
class EvalReport:
    """An evaluation. Acceptance is measured at the configured batch, times and speeds at batch 1.

    Attributes:
        strategy, target, device: what was measured, and where. verify_kernel: which implementation verified.
        draft_length: G. temperature: of target and drafter.
        num_prompts, num_rounds: that acceptance was measured on.
        accepted_length: tokens gained a round, bonus token included, over all tasks; None without a round.
        rates: acceptance per position.
        tokens_per_s, tokens_per_s_plain: medians over paired prompts, same engine with and without drafting.
        speedup: median over the pairs of the ratio of their times.
        predicted_speedup: T_target * tau / (T_draft + T_verify).
        draft_ms, verify_ms, target_ms: median times of a round's two halves, and of a plain step.
        tokens_per_s_transformers: of ``generate`` with its cache on the same prompts, when asked for.
        tasks: by name. versions: of what computed it.
    """

    strategy: str
    target: str
    device: str
    verify_kernel: str
    draft_length: int
    temperature: float
    num_prompts: int
    num_rounds: int
    accepted_length: Interval | None
    rates: PositionRates
    tokens_per_s: float
    tokens_per_s_plain: float
    speedup: float
    predicted_speedup: float | None
    draft_ms: float
    verify_ms: float
    target_ms: float
    tokens_per_s_transformers: float | None
    tasks: dict[str, TaskResult]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for ``json.dumps``."""
        return {
            "schema": SCHEMA,
            "strategy": self.strategy,
            "target": self.target,
            "draft_length": self.draft_length,
            "temperature": self.temperature,
            "num_prompts": self.num_prompts,
            "num_rounds": self.num_rounds,
            "accepted_length": as_json(self.accepted_length),
            "conditional_acceptance": list(self.rates.conditional),
            "survival": list(self.rates.survival),
            "counts": {"observed": list(self.rates.observed), "accepted": list(self.rates.accepted)},
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_plain": self.tokens_per_s_plain,
            "tokens_per_s_transformers": self.tokens_per_s_transformers,
            "speedup": self.speedup,
            "predicted_speedup": self.predicted_speedup,
            "draft_ms": self.draft_ms,
            "verify_ms": self.verify_ms,
            "target_ms": self.target_ms,
            "tasks": {
                name: {
                    "accepted_length": found["mean"],
                    "ci95": found["ci95"],
                    "num_prompts": task.num_prompts,
                }
                for name, task in self.tasks.items()
                for found in [as_json(task.accepted_length)]
            },
            "device": self.device,
            "verify_kernel": self.verify_kernel,
            "versions": dict(self.versions),
        }


def as_json(interval: Interval | None) -> dict[str, Any]:
    """``{"mean", "ci95"}``, both None where nothing was measured."""
    if interval is None:
        return {"mean": None, "ci95": None}
    return {"mean": interval.mean, "ci95": [interval.low, interval.high]}
