"""Several drafters of one target side by side: the same prompts, seeds and temperature, timed by turns.

Accepted lengths are measured on all prompts in batch, times on a few of them: one by one, and together in
blocks of ``BATCH``. Differences are taken prompt by prompt, so that what makes a prompt easy for both sides
does not widen their interval.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any

from deepspec.composed import Composed, compose
from deepspec.config import EvalConfig, RunConfig
from deepspec.errors import ConfigError
from deepspec.evaluate.acceptance import PairedLengths, PromptLength, compare_lengths, prompt_lengths
from deepspec.evaluate.decoding import decode_rounds, sampling_params
from deepspec.evaluate.measure import (
    SPEED_TOKENS,
    make_report,
    needs_memory,
    task_names,
)
from deepspec.evaluate.report import SCHEMA, EvalReport, as_json
from deepspec.evaluate.speed import Speed, measure_speed
from deepspec.evaluate.tasks import Prompts, collect_prompts, spread
from deepspec.paths import DEMO
from deepspec.records import TrainingCost
from deepspec.resources import memory
from deepspec.runs import Run, load_all, run_folder
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.train.assemble import for_decoding

logger = logging.getLogger(__name__)

BATCH = 16
_NUM_ALONE = 16
_NUM_BLOCKS = 4


@dataclass(frozen=True)
class ComparedRun:
    """One drafter among others; in JSON, ``prompts`` holds tokens/rounds of each prompt.

    Attributes:
        name: of its folder, or the path where two folders have one name; a strategy's own.
        report: as ``evaluate`` makes it, its times measured by turns with the others'.
        speedup_batch16: like the report's ``speedup``, with ``BATCH`` requests decoded together.
        step: of the checkpoint, 0 for a strategy. parameters: numbers in the draft model's own weights.
        cost: what training took, where there was any.
        lengths: what each prompt came to, in the prompts' order.
    """

    name: str
    report: EvalReport
    speedup_batch16: float
    step: int
    parameters: int
    cost: TrainingCost
    lengths: tuple[PromptLength, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        found = self.report.to_json()
        kept = ("accepted_length", "conditional_acceptance", "counts", "tasks", "draft_ms", "verify_ms")
        speeds = ("speedup", "predicted_speedup", "tokens_per_s")
        return {
            "name": self.name,
            **{key: found[key] for key in ("strategy", "draft_length", *kept, *speeds)},
            "speedup_batch16": self.speedup_batch16,
            "step": self.step,
            "parameters": self.parameters,
            **asdict(self.cost),
            "prompts": " ".join(f"{length.gained}/{length.rounds}" for length in self.lengths),
        }


@dataclass(frozen=True)
class Pair:
    """Accepted lengths of runs ``a`` and ``b``: a - b and a / b; None when one of them has no round."""

    a: str
    b: str
    lengths: PairedLengths | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps``."""
        found = self.lengths
        ratio = as_json(None if found is None else found.ratio)
        return {
            "a": self.a,
            "b": self.b,
            "difference": as_json(None if found is None else found.difference),
            "ratio": ratio["mean"],
            "ratio_ci95": ratio["ci95"],
        }


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``paired`` has every two runs, in the order of ``runs``."""

    runs: tuple[ComparedRun, ...]
    paired: tuple[Pair, ...]
    config: EvalConfig

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values for ``json.dumps``."""
        shared = self.runs[0].report.to_json()
        keys = ("target", "device", "temperature", "num_prompts", "tokens_per_s_plain", "target_ms")
        settings = ("max_tokens", "seed", "top_k", "top_p", "min_p")
        return {
            "schema": SCHEMA,
            "runs": [run.to_json() for run in self.runs],
            "paired": [pair.to_json() for pair in self.paired],
            **{key: shared[key] for key in keys},
            **self.config.model_dump(include=set(settings)),
            "versions": shared["versions"],
        }


def compare(
    runs: Sequence[Run | Strategy | str | Path],
    *,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
) -> Comparison:
    """Decode the same prompts with each run's drafter, and time all of them by turns.

    Args:
        runs: loaded runs, run folders, or ``demo``, all trained for one target; beside them strategies that
            need no training, to draft for it, too.
        tasks: task names, or ``NAME=FILE.jsonl`` for prompts of your own; the configuration's when neither
            these nor ``task_files`` are given.
        task_files: more of the latter.
        config: sampling, sizes and batch; the first run's own when None.

    Raises:
        ConfigError: runs of different targets, none, one given twice; a strategy that needs training; an
            unknown task, or one named twice.
        DataError: prompts that cannot be had, read, or fitted into the target's positions.
        ResourceError: memory ran out.
    """
    loaded = _loaded(runs)
    names = run_names(loaded)
    first = next(run for run in loaded if isinstance(run, Run))
    settings, target = config or first.config.eval, first.target
    drafted = [for_decoding(run.parts, target) for run in loaded]
    prompts = collect_prompts(task_names(tasks, task_files, settings), target, settings)
    with memory(lambda: needs_memory(settings)):
        rounds = []
        for name, parts in zip(names, drafted, strict=True):
            logger.info("decoding %d prompts with %s", sum(map(len, prompts.values())), name)
            rounds.append({task: decode_rounds(target, parts, prompts[task], settings) for task in prompts})
        alone, together = _time(target, drafted, prompts, settings)
    compared = tuple(
        ComparedRun(
            name=names[place],
            report=make_report(target, parts, settings, rounds[place], alone[place]),
            speedup_batch16=together[place].speedup,
            step=run.step if isinstance(run, Run) else 0,
            parameters=sum(weight.numel() for weight in parts.modules().parameters()),
            cost=run.cost if isinstance(run, Run) else TrainingCost(),
            lengths=tuple(length for task in rounds[place].values() for length in prompt_lengths(task)),
        )
        for place, (run, parts) in enumerate(zip(loaded, drafted, strict=True))
    )
    pairs = tuple(
        Pair(a.name, b.name, compare_lengths(a.lengths, b.lengths, seed=settings.seed))
        for a, b in combinations(compared, 2)
    )
    return Comparison(compared, pairs, settings)


def _loaded(runs: Sequence[Run | Strategy | str | Path]) -> list[Run | Composed]:
    """The runs with the one target that they share, and the strategies put on it, in the order given."""
    trained = load_all([run for run in runs if not isinstance(run, Strategy)])
    first, following = trained[0], iter(trained)
    device = str(first.parts.drafter.context.target.embedding.device)
    found: list[Run | Composed] = []
    for run in runs:
        if isinstance(run, Strategy):
            config = RunConfig(strategy=run, target=first.config.target, device=device)
            found.append(compose(config, first.target))
        else:
            found.append(next(following))
    return found


def run_names(runs: Sequence[Run | Composed]) -> list[str]:
    """Each run's folder name, or its path where folders share one, with the step where checkpoints do; a
    strategy's name."""
    paths = [run.path if isinstance(run, Run) else Path(run.config.strategy.name) for run in runs]
    short = [DEMO if path == run_folder(DEMO) else path.name for path in paths]
    full = [
        str(path) if paths.count(path) == 1 or not isinstance(run, Run) else f"{path}@{run.step}"
        for run, path in zip(runs, paths, strict=True)
    ]
    names = [name if short.count(name) == 1 else other for name, other in zip(short, full, strict=True)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]!r} is given twice; give each once, and runs by their paths")
    return names


def _time(
    target: Target, drafted: Sequence[Parts], prompts: dict[str, Prompts], config: EvalConfig
) -> tuple[list[Speed], list[Speed]]:
    """Each drafter's speed at batch 1, and at ``BATCH``; prompts repeat when there are too few."""
    everything = [prompt for found in prompts.values() for prompt in found]
    params = sampling_params(config, max_tokens=min(config.max_tokens, SPEED_TOKENS))
    logger.info("timing at batch 1, then at batch %d", BATCH)
    some = spread(everything, _NUM_BLOCKS * BATCH)
    return (
        measure_speed(target, drafted, spread(everything, _NUM_ALONE), params),
        measure_speed(target, drafted, [*islice(cycle(some), _NUM_BLOCKS * BATCH)], params, batch=BATCH),
    )
