"""Fits a run's calibrator on held-out rounds of full length and measures it on others.

Every second request's rounds are fitted to, the others measured: errors are of rounds that no fit has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from deepspec.calibrators.measures import (
    area_under_curve,
    brier_score,
    calibration_error,
    calibration_floor,
)
from deepspec.composed import Composed, opened
from deepspec.config import EvalConfig
from deepspec.errors import ConfigError, DataError
from deepspec.evaluate.measure import decode_tasks, needs_memory, task_names
from deepspec.evaluate.tasks import collect_prompts
from deepspec.plugins import create_plugin_manager
from deepspec.redecoding import redecoded
from deepspec.resources import memory
from deepspec.rounds import CalibrationRounds, Floats
from deepspec.trace import Trace, TraceHeader, read_trace
from deepspec.train.assemble import for_decoding
from deepspec.train.confidence import check_trained

if TYPE_CHECKING:
    from deepspec.interfaces import Calibrator
    from deepspec.runs import Run
    from deepspec.strategy import Parts
    from deepspec.target import Target

#: What each half must have: fewer leave the error's own noise above a percentage point.
LEAST_ROUNDS = 500
DEFAULT = "sequential"


@dataclass(frozen=True)
class CalibrationReport:
    """A fitted calibrator, and how it does on rounds that it was not fitted to; one number a position.

    Attributes:
        options: the calibrator's, those that were fitted among them.
        header: what the rounds were decoded with, and so what they hold for.
        num_fitted, num_rounds: rounds fitted to, and measured.
        ece_before, ece_after: of the survival, by the confidence alone and calibrated, as fractions.
        ece_floor: what a perfectly calibrated survival like the fitted one would have on as many rounds.
        brier_before, brier_after: mean squared error of the survival.
        auc_conditional_before, auc_conditional: of each position's acceptance; None where all went one way.
        auc_survival_before, auc_survival_after: of the survival.
    """

    calibrator: str
    options: Mapping[str, object]
    header: TraceHeader
    num_fitted: int
    num_rounds: int
    ece_before: tuple[float, ...]
    ece_after: tuple[float, ...]
    ece_floor: tuple[float, ...]
    brier_before: tuple[float, ...]
    brier_after: tuple[float, ...]
    auc_conditional_before: tuple[float | None, ...]
    auc_conditional: tuple[float | None, ...]
    auc_survival_before: tuple[float | None, ...]
    auc_survival_after: tuple[float | None, ...]

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        found = self.options.get("temperatures", ())
        return {
            "schema": 1,
            "calibrator": self.calibrator,
            "verifier": self.header.verifier,
            "temperature": self.header.temperature,
            "confidence": self.header.confidence,
            "num_rounds": self.num_rounds,
            "num_rounds_fitted": self.num_fitted,
            "ece_before": list(self.ece_before),
            "ece_after": list(self.ece_after),
            "ece_floor": list(self.ece_floor),
            "brier_before": list(self.brier_before),
            "brier_after": list(self.brier_after),
            "auc_conditional_before": list(self.auc_conditional_before),
            "auc_conditional": list(self.auc_conditional),
            "auc_survival_before": list(self.auc_survival_before),
            "auc_survival_after": list(self.auc_survival_after),
            "temperatures": list(found) if isinstance(found, list | tuple) else [],
        }

    def stored(self) -> dict[str, Any]:
        """What a checkpoint keeps: the changed part, and what it holds for."""
        part = {"type": self.calibrator, **self.options}
        head = {"confidence": self.header.confidence}
        return {"strategy": {"calibrator": part, "head": head}, **self.to_json()}

    def sglang_temperatures(self) -> dict[str, Any]:
        """SGLang's file of sequential temperatures; raises ConfigError when the calibrator has none."""
        found = sglang_temperatures(self.to_json())
        if found is None:
            raise ConfigError(
                f"calibrator {self.calibrator!r} has no temperatures to export; give --calibrator sequential"
            )
        return found


def sglang_temperatures(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """SGLang's file of a report's JSON, also as a checkpoint keeps it; None without temperatures."""
    if not report.get("temperatures"):
        return None
    kept = {key: report[key] for key in ("temperatures", "ece_before", "ece_after")}
    return {**kept, "dataset": "held-out rounds", "num_samples": report["num_rounds"]}


def calibrate(
    run: Run | Composed | str | Path,
    *,
    calibrator: str | None = None,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
    trace: str | Path | None = None,
    soft: bool = False,
) -> CalibrationReport:
    """Fit a calibrator to half of the rounds, and measure it on the other half.

    Args:
        run: a loaded run, a run folder, or ``demo``.
        calibrator: the run's own when None, or sequential temperature scaling when that has nothing to fit.
        tasks, task_files, config: what is decoded, as :func:`deepspec.evaluate` has it, at full length.
        trace: rounds of :func:`deepspec.evaluate` instead, decoded at full length with this drafter.
        soft: fit to the chance that a row is accepted, for the token rule, in place of whether it was.

    Raises:
        ConfigError: a head without confidence, a calibrator that is unknown or has nothing to fit, or chances
            of another rule. DataError: too few rounds, or a trace of other ones.
    """
    loaded = opened(run)
    model, parts = loaded.target, for_decoding(loaded.parts, loaded.target)
    if parts.head.confidence == "none":
        raise ConfigError(
            f"head {parts.head.name!r} gives no confidence, so there is nothing to calibrate; give "
            "--set head.confidence=row_max"
        )
    if soft and parts.verifier.name != "token":
        raise ConfigError(
            f"chances are those of the token rule and the verifier is {parts.verifier.name!r}; give "
            "--set verifier.type=token, or leave --soft out"
        )
    check_trained(parts, create_plugin_manager(), "a calibrator")
    whole = verifying_all(parts, calibrator)
    settings = config or loaded.config.eval
    if trace is None:
        found = decode_whole(model, whole, settings, task_names(tasks, task_files, settings))
    else:
        found = _fitting(read_trace(trace), model, whole, trace)
    return fit_and_measure(found, whole.calibrator, soft=soft)


def verifying_all(parts: Parts, calibrator: str | None = None) -> Parts:
    """Parts whose rounds can be fitted to, with this calibrator, their own, or the default.

    Raises ConfigError for an unknown calibrator.
    """
    own = parts.calibrator.name
    name = calibrator or (DEFAULT if own == "identity" else own)
    return redecoded(parts, policy="fixed", **({} if name == own else {"calibrator": name}))


def decode_whole(target: Target, parts: Parts, config: EvalConfig, tasks: Sequence[str]) -> Trace:
    """The rounds of the tasks' prompts; ``parts`` are to verify all that they draft."""
    prompts = collect_prompts(tasks, target, config)
    with TemporaryDirectory() as folder, memory(lambda: needs_memory(config)):
        path = Path(folder) / "rounds.parquet"
        decode_tasks(target, parts, prompts, config, trace=path)
        return read_trace(path)


def _fitting(trace: Trace, target: Target, parts: Parts, path: str | Path) -> Trace:
    """The trace, if it is of this drafter's rounds; raises DataError."""
    header, length = trace.header, parts.drafter.context.draft_length
    for what, given, wanted in (
        ("target", header.fingerprint, target.fingerprint),
        ("strategy", header.strategy, parts.strategy.name),
        ("draft length", header.draft_length, length),
        ("verifier", header.verifier, parts.verifier.name),
        ("head's confidence", header.confidence, parts.head.confidence),
    ):
        if given != wanted:
            raise DataError(
                f"trace {path} was written with {what} {given!r} and the run has {wanted!r}; write one with "
                f"it: deepspec eval RUN --trace {path}"
            )
    return trace


def fit_and_measure(trace: Trace, calibrator: Calibrator, *, soft: bool = False) -> CalibrationReport:
    """Fit to the full rounds of every second request and measure on the others'.

    Raises ConfigError when there is nothing to fit, DataError when there are too few rounds.
    """
    whole = (trace.columns["verified"] == trace.header.draft_length) & ~np.isnan(trace.confidence).any(axis=1)
    # Requests are told apart within a task, and numbered from 0 in each.
    for_fit = trace.columns["request_id"] % 2 == 0
    to_fit, others = trace.rounds(soft=soft)[whole & for_fit], trace.rounds()[whole & ~for_fit]
    _check_enough(to_fit, others)
    options = calibrator.fit(to_fit)
    if options is None:
        raise ConfigError(
            f"calibrator {calibrator.name!r} has nothing to fit; give one that has, such as {DEFAULT}"
        )
    options = {**calibrator.config.model_dump(exclude_unset=True), **options}
    cls = type(calibrator)
    fitted = cls(cls.Config.model_validate(options), calibrator.context)
    before, after = others.conditional(), calibrated(fitted, others.confidence)
    survived_before, survived = before.cumprod(axis=1), after.cumprod(axis=1)
    return CalibrationReport(
        calibrator=calibrator.name,
        options=options,
        header=trace.header,
        num_fitted=len(to_fit),
        num_rounds=len(others),
        ece_before=_by_position(calibration_error, survived_before, others.prefix),
        ece_after=_by_position(calibration_error, survived, others.prefix),
        ece_floor=tuple(calibration_floor(column) for column in survived.T),
        brier_before=_by_position(brier_score, survived_before, others.prefix),
        brier_after=_by_position(brier_score, survived, others.prefix),
        auc_conditional_before=_by_position(area_under_curve, before, others.kept, others.looked),
        auc_conditional=_by_position(area_under_curve, after, others.kept, others.looked),
        auc_survival_before=_by_position(area_under_curve, survived_before, others.prefix),
        auc_survival_after=_by_position(area_under_curve, survived, others.prefix),
    )


def _check_enough(*halves: CalibrationRounds) -> None:
    fewest = min(len(half) for half in halves)
    if fewest < LEAST_ROUNDS:
        raise DataError(
            f"{sum(len(half) for half in halves)} rounds of full length, {fewest} in the smaller half, and a "
            f"calibration needs {LEAST_ROUNDS} in each: {LEAST_ROUNDS - fewest} are missing; decode more "
            "(--num-prompts, --max-tokens)"
        )


def calibrated(calibrator: Calibrator, confidence: Floats) -> Floats:
    """What a calibrator makes of confidence logits ``[M, G]``: conditional acceptances ``[M, G]``."""
    with torch.no_grad():
        found: Floats = calibrator.conditional(torch.from_numpy(confidence)).double().numpy()
    return found


def _by_position(measure: Any, predicted: Floats, happened: Floats, looked: Any = None) -> tuple[Any, ...]:
    """``measure`` of each column, of its rows that were looked at."""
    columns = range(predicted.shape[1])
    rows = [slice(None) if looked is None else looked[:, k] for k in columns]
    return tuple(measure(predicted[rows[k], k], happened[rows[k], k]) for k in columns)
