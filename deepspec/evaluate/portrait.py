"""What the page of a run shows, measured in one go: acceptance, calibration, speed, and serving under load.

The run's prompts are decoded as it is configured, and at full length; from the latter come the calibration,
what thresholds would have verified, and the rounds that the simulated load resamples. Load is simulated on
the SPS curve of this machine, up to the number of requests that it was measured for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deepspec.calibrators.measures import NUM_BINS
from deepspec.config import EvalConfig
from deepspec.curves import SpsCurve
from deepspec.errors import DataError
from deepspec.evaluate.calibration import (
    CalibrationReport,
    calibrated,
    decode_whole,
    fit_and_measure,
    verifying_all,
)
from deepspec.evaluate.measure import evaluate, task_names
from deepspec.evaluate.report import SCHEMA, EvalReport
from deepspec.interfaces import Calibrator
from deepspec.redecoding import redecoded
from deepspec.rounds import CalibrationRounds, Floats
from deepspec.runs import Run
from deepspec.simulate import RecordedAcceptance, Workload, build_policy, closed_loop, serve
from deepspec.simulate.recorded import rounds_of
from deepspec.trace import Trace
from deepspec.train.assemble import for_decoding

logger = logging.getLogger(__name__)

#: Policies that are served side by side; those that need no confidence, and all.
PLAIN_POLICIES = ("fixed:length=0", "fixed:length=1", "fixed")
POLICIES = (*PLAIN_POLICIES, "prefix", "cliff", "frugal")
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(20))
SIMULATED_STEPS = 1500


@dataclass(frozen=True)
class Portrait:
    """One run's page.

    Attributes:
        name, step, config: of the run; ``config`` as ``deepspec config show`` has it.
        evaluation: as :func:`deepspec.evaluate` reports it, with the run's own parts.
        calibration: None where the head gives no confidence or there are too few rounds.
        reliability: mean predicted survival, share that survived, and number of predictions in each bin, all
            positions together: ``before`` and ``after`` calibrating; None like ``calibration``.
        sweep: for each of ``THRESHOLDS`` tokens verified and gained a round; empty like ``calibration``.
        curve: of this machine. loads: for each policy its points under simulated load.
        train: what training took.
    """

    name: str
    step: int
    config: Mapping[str, Any]
    evaluation: EvalReport
    calibration: CalibrationReport | None
    reliability: Mapping[str, Any] | None
    sweep: Sequence[Mapping[str, float]]
    curve: SpsCurve
    loads: Sequence[Mapping[str, Any]]
    train: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        return {
            "name": self.name,
            "step": self.step,
            "evaluation": self.evaluation.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "reliability": self.reliability,
            "threshold_sweep": list(self.sweep),
            "sps_curve": self.curve.to_json(),
            "policies": list(self.loads),
            "train": dict(self.train),
            "config": dict(self.config),
        }


def portraits_json(portraits: Sequence[Portrait]) -> dict[str, Any]:
    """The page's data: ``{"schema", "runs"}``."""
    return {"schema": SCHEMA, "runs": [one.to_json() for one in portraits]}


def portray(
    run: Run,
    name: str,
    curve: SpsCurve,
    *,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
) -> Portrait:
    """Measure a run for its page.

    Args:
        name: what it is called on the page.
        curve: of this machine and the run's target.
        tasks, task_files, config: what is decoded, as :func:`deepspec.evaluate` has it.

    Raises as :func:`deepspec.evaluate` does.
    """
    settings = config or run.config.eval
    logger.info("%s: acceptance and speed", name)
    evaluation = evaluate(run, tasks=tasks, task_files=task_files, config=settings)
    logger.info("%s: rounds of full length", name)
    parts = for_decoding(run.parts, run.target)
    whole = verifying_all(parts)
    trace = decode_whole(run.target, whole, settings, task_names(tasks, task_files, settings))
    calibration = _calibration(trace, whole.calibrator, name)
    conditional = None
    if calibration is not None:
        options = {"type": calibration.calibrator, **calibration.options}
        conditional = calibrated(redecoded(parts, calibrator=options).calibrator, trace.confidence)
    logger.info("%s: simulated load", name)
    return Portrait(
        name=name,
        step=run.step,
        config=run.config.model_dump(mode="json"),
        evaluation=evaluation,
        calibration=calibration,
        reliability=None if conditional is None else _both(trace.rounds(), conditional),
        sweep=[] if conditional is None else _sweep(trace, conditional),
        curve=curve,
        loads=_loads(trace, conditional, curve),
        train=asdict(run.cost),
    )


def _calibration(trace: Trace, calibrator: Calibrator, name: str) -> CalibrationReport | None:
    if trace.header.confidence == "none":
        logger.info("%s: its head gives no confidence, so nothing is calibrated", name)
        return None
    try:
        return fit_and_measure(trace, calibrator)
    except DataError as error:
        logger.info("%s: not calibrated: %s", name, error)
        return None


def _both(rounds: CalibrationRounds, conditional: Floats) -> dict[str, Any]:
    ways = {"before": rounds.conditional(), "after": conditional}
    return {way: _bins(chances.cumprod(axis=1), rounds.prefix) for way, chances in ways.items()}


def _bins(predicted: Floats, happened: Floats) -> dict[str, list[float]]:
    """Of each of the ECE's bins that has predictions: their mean, the share that came true, how many."""
    place = np.minimum((predicted * NUM_BINS).astype(np.int64), NUM_BINS - 1).ravel()
    counts = np.bincount(place, minlength=NUM_BINS)
    used = counts > 0
    means = [
        np.bincount(place, values.ravel(), NUM_BINS)[used] / counts[used] for values in (predicted, happened)
    ]
    return {
        "predicted": means[0].round(6).tolist(),
        "happened": means[1].round(6).tolist(),
        "count": counts[used].tolist(),
    }


def _sweep(trace: Trace, conditional: Floats) -> list[dict[str, float]]:
    """What verifying up to the first confidence below a threshold would have verified and gained."""
    accepted = trace.columns["accepted"]
    found = []
    for threshold in THRESHOLDS:
        lengths = np.logical_and.accumulate(conditional >= threshold, axis=1).sum(axis=1)
        found.append(
            {
                "threshold": threshold,
                "verified": round(float(lengths.mean()), 6),
                "accepted_length": round(1 + float(np.minimum(accepted, lengths).mean()), 6),
            }
        )
    return found


def _loads(trace: Trace, conditional: Floats | None, curve: SpsCurve) -> list[dict[str, Any]]:
    """Policies under closed-loop load of 1, 2, 4, .. requests, as many as the curve was measured for."""
    rounds = rounds_of(trace, np.ones_like(trace.confidence) if conditional is None else conditional)
    workload = Workload({"chat": 1.0}, prompt_tokens=64, output_tokens=128)
    concurrencies = [2**n for n in range((curve.num_requests or 16).bit_length())]
    found = []
    for name in PLAIN_POLICIES if conditional is None else POLICIES:
        points = []
        for concurrency in concurrencies:
            served = serve(
                build_policy(name, trace.header.draft_length),
                curve,
                RecordedAcceptance(rounds, concurrency, seed=0),
                closed_loop(workload, 64 * concurrency, seed=0),
                num_slots=concurrency,
                num_steps=SIMULATED_STEPS,
            )
            points.append({"concurrency": concurrency, **asdict(served)})
        found.append({"policy": name, "points": points})
    return found
