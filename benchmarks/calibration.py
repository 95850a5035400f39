"""Calibration where it is put to the test: at other temperatures, on other text, by another confidence, of a
drafter trained for too long; and the online calibrator after the traffic changes.

Each shift decodes held-out prompts at full length. Every second request's rounds are fitted to, the others
measured: the head's confidence as it is, under temperatures that were fitted at home (code at temperature 1),
and under ones fitted to the shift, each beside the error that a perfect calibrator would have on as many
rounds. A switch decodes one kind of traffic in the engine with the online calibrator, then another kind, and
measures what it has made of that after a while, on rounds that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import records
from rich.console import Console
from traffic import Traffic

import deepspec
from deepspec import Engine, SamplingParams, Strategy
from deepspec.calibrators.measures import area_under_curve, calibration_error, calibration_floor
from deepspec.config import DataConfig, EvalConfig, RunConfig, TrainConfig
from deepspec.data.default import default_examples
from deepspec.data.examples import TextExample
from deepspec.evaluate.calibration import calibrated
from deepspec.evaluate.measure import decode_tasks
from deepspec.evaluate.tasks import collect_prompts
from deepspec.interfaces import Calibrator
from deepspec.paths import cache_root
from deepspec.redecoding import redecoded
from deepspec.rounds import CalibrationRounds, Floats
from deepspec.runs import Run, newest_checkpoint
from deepspec.trace import read_trace
from deepspec.types import TracedStep

SEED = 0
HOME = ("stdlib", 1.0)
#: Task, temperature, the head's confidence, and whether by the drafter that was trained for too long.
SHIFTS = {
    "none": (*HOME, "linear", False),
    "temperature 0.5": ("stdlib", 0.5, "linear", False),
    "temperature 0": ("stdlib", 0.0, "linear", False),
    "prose": ("prose", 1.0, "linear", False),
    "row_max confidence": (*HOME, "row_max", False),
    "trained too long": (*HOME, "linear", True),
}
CALIBRATORS = ("sequential", "isotonic")
#: Rounds of the engine before the switch, after it until it is measured, and those measured.
BEFORE, AFTER, MEASURED, BATCH = 200, 300, 104, 32
#: From code at temperature 1 to this, by that confidence.
SWITCHES = {
    "code at 0.5": ("stdlib", 0.5, "linear"),
    "code at 0": ("stdlib", 0.0, "linear"),
    "prose": ("prose", 1.0, "linear"),
    "prose at 0": ("prose", 0.0, "linear"),
    "code at 0, row_max": ("stdlib", 0.0, "row_max"),
    "prose at 0, row_max": ("prose", 0.0, "row_max"),
}
#: A drafter of few documents, read many times.
FEW_DOCUMENTS, MANY_STEPS = 24, 600


def overtrained() -> Run:
    """A DSpark drafter that has read a few documents hundreds of times; trained once, then loaded."""
    folder = cache_root() / "benchmarks" / "calibration" / f"dspark-{FEW_DOCUMENTS}-documents-s{MANY_STEPS}"
    if newest_checkpoint(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        texts = [one.text for one in default_examples([])[:FEW_DOCUMENTS] if isinstance(one, TextExample)]
        text = folder.with_suffix(".jsonl")
        text.write_text("".join(json.dumps({"text": one[:4000]}) + "\n" for one in texts))
        config = RunConfig(
            strategy=Strategy.named("dspark"),
            data=DataConfig(paths=(str(text),), held_out_fraction=0.1),
            train=TrainConfig(num_steps=MANY_STEPS, validate_every=MANY_STEPS),
        )
        deepspec.train(config.strategy, config=config, out=folder)
    return deepspec.load(folder)


def decode(run: Run, task: str, temperature: float, num_prompts: int) -> tuple[CalibrationRounds, Floats]:
    """Rounds of the run's parts at full length, and each one's request."""
    config = EvalConfig(
        tasks=(task,), temperature=temperature, num_prompts=num_prompts, seed=SEED, batch=BATCH
    )
    prompts = collect_prompts(config.tasks, run.target, config)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.parquet"
        decode_tasks(run.target, run.parts, prompts, config, trace=path)
        trace = read_trace(path)
    return trace.rounds(), trace.columns["request_id"]


def errors(calibrator: Calibrator | None, rounds: CalibrationRounds) -> dict[str, Any]:
    """ECE and floor of the survival as fractions, and both AUCs, by position; None: confidence as it is."""
    conditional = rounds.conditional()
    if calibrator is not None:
        conditional = calibrated(calibrator, rounds.confidence)
    survival, columns = conditional.cumprod(axis=1), range(rounds.draft_length)
    looked = rounds.looked
    found = {
        "ece": [calibration_error(survival[:, k], rounds.prefix[:, k]) for k in columns],
        "floor": [calibration_floor(survival[:, k]) for k in columns],
        "auc_conditional": [
            area_under_curve(conditional[looked[:, k], k], rounds.kept[looked[:, k], k]) for k in columns
        ],
        "auc_survival": [area_under_curve(survival[:, k], rounds.prefix[:, k]) for k in columns],
    }
    return {name: [None if v is None else round(v, 9) for v in values] for name, values in found.items()}


def fitted(run: Run, name: str, rounds: CalibrationRounds) -> Calibrator:
    """The run's parts' calibrator of that name, fitted."""
    made: Calibrator = with_calibrator(run, name).parts.calibrator
    options = made.fit(rounds) or {}
    return type(made)(type(made).Config.model_validate(options), made.context)


def with_calibrator(run: Run, name: str, **options: Any) -> Run:
    """The run with another calibrator."""
    return replace(run, parts=redecoded(run.parts, calibrator={"type": name, **options}))


def shifts(num_prompts: int, console: Console) -> list[dict[str, Any]]:
    """Every shift; what was fitted at home is carried to those with the same confidence and drafter."""
    found, carried = [], None
    for name, (task, temperature, confidence, long) in SHIFTS.items():
        run = overtrained() if long else deepspec.load("demo", changes={"head": {"confidence": confidence}})
        rounds, requests = decode(run, task, temperature, num_prompts)
        to_fit, others = rounds[requests % 2 == 0], rounds[requests % 2 == 1]
        one: dict[str, Any] = {"shift": name, "num_fitted": len(to_fit), "num_rounds": len(others)}
        one["as it is"] = errors(None, others)
        if carried is not None and confidence == "linear" and not long:
            one["fitted at home"] = errors(carried, others)
        for calibrator in CALIBRATORS:
            made = fitted(run, calibrator, to_fit)
            one[calibrator] = errors(made, others)
            if carried is None:
                carried = made
        console.print(line(one), highlight=False)
        found.append(one)
    return found


def switches(console: Console) -> list[dict[str, Any]]:
    """Each switch: the online calibrator where it stands, and sequential temperatures fitted before it."""
    found = []
    for name, (task, temperature, confidence) in SWITCHES.items():
        run = with_calibrator(deepspec.load("demo", changes={"head": {"confidence": confidence}}), "online")
        steps: list[TracedStep] = []
        prompts = {t: prompts_of(run, t) for t in {HOME[0], task}}
        engine = Engine(run.target, run.parts, max_batch=BATCH, seed=SEED, tracer=steps.append)
        traffic = Traffic(engine, BATCH)
        traffic.run(prompts[HOME[0]], SamplingParams(temperature=HOME[1]), BEFORE)
        traffic.stop()
        home = rounds_of(steps)
        carried = fitted(run, "sequential", home)
        steps.clear()
        params = SamplingParams(temperature=temperature)
        traffic.run(prompts[task], params, AFTER)
        before, calibrator = rounds_of(steps), deepcopy(engine.parts.calibrator)  # which learns no more
        steps.clear()
        traffic.run(prompts[task], params, MEASURED)
        others = rounds_of(steps)
        one = {
            "switch": name,
            "rounds": [BEFORE, AFTER, MEASURED],
            "batch": BATCH,
            "num_rounds": len(others),
            "as it is": errors(None, others),
            "fitted at home": errors(carried, others),
            "online": errors(calibrator, others),
            "sequential": errors(fitted(run, "sequential", before), others),
        }
        console.print(line(one), highlight=False)
        found.append(one)
    return found


def prompts_of(run: Run, task: str) -> list[Any]:
    config = EvalConfig(tasks=(task,), num_prompts=128)
    return list(collect_prompts(config.tasks, run.target, config)[task])


def rounds_of(steps: list[TracedStep]) -> CalibrationRounds:
    """Of traced steps, all requests' rounds."""
    requests = [one for step in steps for one in step.record.requests]
    return CalibrationRounds.from_counts(
        np.concatenate([step.confidence for step in steps]).astype(np.float64),
        np.array([one.verified for one in requests]),
        np.array([one.accepted for one in requests]),
    )


def mean_points(found: dict[str, Any]) -> tuple[float, float]:
    """Mean ECE over positions and mean floor, in percentage points."""
    return 100 * float(np.mean(found["ece"])), 100 * float(np.mean(found["floor"]))


def line(one: dict[str, Any]) -> str:
    """A shift or switch in words."""
    ways = [
        "{} {:.2f} ({:.2f})".format(way, *mean_points(found))
        for way, found in one.items()
        if isinstance(found, dict)
    ]
    name = one.get("shift") or one["switch"]
    return f"{name}, {one['num_rounds']:,} rounds, mean ECE (floor) in points: {'; '.join(ways)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompts", type=int, default=128, help="of a task, for each shift")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    result = {"shifts": shifts(options.num_prompts, console), "switches": switches(console)}
    lines = records.write(
        "calibration",
        {"setting": "the shipped demo target and drafter, code and prose", **result},
        seed=SEED,
        warm_up="none, nothing is timed",
        repeats="each prompt once",
    )
    console.print("\n".join(lines), highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
