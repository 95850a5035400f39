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

from deepspec.config import EvalConfig
from deepspec.evaluate.acceptance import PairedLengths, PromptLength, compare_lengths, prompt_lengths
from deepspec.evaluate.measure import (
    SPEED_TOKENS,
    decode_rounds,
    make_report,
    needs_memory,
    sampling_params,
    task_names,
)
from deepspec.evaluate.report import SCHEMA, EvalReport, as_json
from deepspec.evaluate.speed import Speed, measure_speed
from deepspec.evaluate.tasks import Prompts, collect_prompts, spread
from deepspec.paths import DEMO
from deepspec.resources import memory
from deepspec.runs import Run, TrainingCost, load_all, run_folder
from deepspec.strategy import Parts
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
        name: of its folder, or the path where two folders have one name.
        report: as ``evaluate`` makes it, its times measured by turns with the others'.
        speedup_batch16: like the report's ``speedup``, with ``BATCH`` requests decoded together.
        step: of the checkpoint. parameters: numbers in the draft model's own weights.
        cost: what training took.
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
    runs: Sequence[Run | str | Path],
    *,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
) -> Comparison:
    """Decode the same prompts with each run's drafter, and time all of them by turns.

    Args:
        runs: loaded runs, run folders, or ``demo``, all trained for one target.
        tasks: task names, or ``NAME=FILE.jsonl`` for prompts of your own; the configuration's when neither
            these nor ``task_files`` are given.
        task_files: more of the latter.
        config: sampling, sizes and batch; the first run's own when None.

    Raises:
        ConfigError: runs of different targets, none, one given twice; an unknown task, or one named twice.
        DataError: prompts that cannot be had, read, or fitted into the target's positions.
        ResourceError: memory ran out.
    """
    loaded = load_all(runs)
    names = _names(loaded)
    settings = config or loaded[0].config.eval
    target = loaded[0].target
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
            step=run.step,
            parameters=sum(weight.numel() for weight in parts.modules().parameters()),
            cost=run.cost,
            lengths=tuple(length for task in rounds[place].values() for length in prompt_lengths(task)),
        )
        for place, (run, parts) in enumerate(zip(loaded, drafted, strict=True))
    )
    pairs = tuple(
        Pair(a.name, b.name, compare_lengths(a.lengths, b.lengths, seed=settings.seed))
        for a, b in combinations(compared, 2)
    )
    return Comparison(compared, pairs, settings)


def _names(runs: Sequence[Run]) -> list[str]:
    """Each run's folder name, or its path where folders share one."""
    short = [DEMO if run.path == run_folder(DEMO) else run.path.name for run in runs]
    return [name if short.count(name) == 1 else str(run.path) for name, run in zip(short, runs, strict=True)]


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
