"""Measures a drafter by real decoding: acceptance on all prompts in batch, speed on a few of them alone.

At the defaults and with the demo target this decodes 128 prompts of 128 tokens at batch 16, then
``NUM_SPEED_PROMPTS`` prompts of ``SPEED_TOKENS`` tokens at batch 1 two or three times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from deepspec.composed import Composed, opened
from deepspec.config import EvalConfig
from deepspec.distributed import ALONE, World, join
from deepspec.environment import device_name, versions
from deepspec.errors import ConfigError
from deepspec.evaluate.acceptance import compare_lengths, measure_acceptance, prompt_lengths
from deepspec.evaluate.decoding import decode_rounds, sampling_params
from deepspec.evaluate.report import EvalReport, TaskResult, VerifierGain
from deepspec.evaluate.speed import Speed, measure_speed
from deepspec.evaluate.tasks import Prompts, collect_prompts, spread
from deepspec.kernels import backend_for
from deepspec.redecoding import redecoded
from deepspec.resources import memory, writing
from deepspec.runs import Run, write_json
from deepspec.strategy import Parts, Strategy
from deepspec.target import Target
from deepspec.timeline import Timeline
from deepspec.trace import TraceHeader, write_trace
from deepspec.train.assemble import for_decoding
from deepspec.types import RequestRound

NUM_SPEED_PROMPTS = 8
SPEED_TOKENS = 64


def evaluate(
    run: Run | Composed | Strategy | str | Path,
    *,
    target: str | None = None,
    tasks: Sequence[str] | None = None,
    task_files: Sequence[str] = (),
    config: EvalConfig | None = None,
    against_transformers: bool = False,
    against_verifier: str | None = None,
    trace: str | Path | None = None,
    timeline: str | Path | None = None,
) -> EvalReport:
    """Decode the tasks' prompts with a drafter and report acceptance and speed.

    Under ``torchrun`` every process calls this and decodes its share of the prompts; the main one measures
    the speed while the others wait, and all return the same report.

    Args:
        run: a loaded run, a run folder, ``demo``, or a strategy that needs no training.
        target: the model that a strategy drafts for, the demo target when None; a run has its own.
        tasks: task names, or ``NAME=FILE.jsonl`` for prompts of your own; the configuration's when neither
            these nor ``task_files`` are given.
        task_files: more of the latter.
        config: sampling, sizes and batch; the run's own when None.
        against_transformers: also time transformers' ``generate`` on the speed prompts.
        against_verifier: a verifier to decode the same prompts and seeds with, too, and compare τ with.
        trace: a Parquet file for the rounds of all prompts; see :mod:`deepspec.trace`.
        timeline: a JSON file for their steps, in the trace format of Chrome and Perfetto.

    Raises:
        ConfigError: an unknown task or verifier, a task named twice, a strategy that needs training, or files
            of steps by several processes.
        DataError: prompts that cannot be had, read, or fitted into the target's positions.
        ResourceError: memory ran out, or a file cannot be written.
        DistributedError, ElsewhereError: another process is gone, or tells why this ends.
    """
    world = join()
    loaded = world.together(lambda: opened(run, target=target))
    settings = config or loaded.config.eval
    model, parts = loaded.target, for_decoding(loaded.parts, loaded.target)
    other = None
    if against_verifier is not None:
        other = world.together(lambda: redecoded(parts, verifier=against_verifier))

    def find() -> dict[str, Prompts]:
        _check_world(world, model, trace, timeline)
        return collect_prompts(task_names(tasks, task_files, settings), model, settings)

    def speed() -> dict[str, Any]:
        [found] = measure_speed(
            model,
            [parts],
            spread([prompt for found in prompts.values() for prompt in found], NUM_SPEED_PROMPTS),
            sampling_params(settings, max_tokens=min(settings.max_tokens, SPEED_TOKENS)),
            against_transformers=against_transformers,
        )
        return asdict(found)

    with world.watched(lambda: "start again"), memory(lambda: needs_memory(settings)):
        prompts = world.together(find)
        by_task = decode_tasks(model, parts, prompts, settings, trace=trace, timeline=timeline, world=world)
        report = make_report(model, parts, settings, by_task, Speed(**world.from_main(speed)))
        if other is None:
            return report
        return replace(report, verifier_gain=_gain(model, other, by_task, prompts, settings, world))


def _check_world(world: World, target: Target, trace: str | Path | None, timeline: str | Path | None) -> None:
    if world.is_alone:
        return
    if trace is not None or timeline is not None:
        raise ConfigError("--trace and --timeline are of one process's steps; start it without torchrun")
    if target.is_sharded:
        raise ConfigError(
            f"target {target.name!r} is shared out among the processes, which decode each on its own; load "
            "the run again where its target fits: deepspec.load(run.path)"
        )


def _gain(
    target: Target,
    other: Parts,
    by_task: Mapping[str, list[list[RequestRound]]],
    prompts: Mapping[str, Prompts],
    config: EvalConfig,
    world: World,
) -> VerifierGain:
    """What the rounds that were measured gain on those of ``other``."""
    ours = [length for rounds in by_task.values() for length in prompt_lengths(rounds)]
    theirs = [
        length
        for found in prompts.values()
        for length in prompt_lengths(decode_rounds(target, other, found, config, world=world))
    ]
    return VerifierGain(other.verifier.name, compare_lengths(ours, theirs, seed=config.seed))


def task_names(tasks: Sequence[str] | None, task_files: Sequence[str], config: EvalConfig) -> list[str]:
    """What to measure on: what was given, else what the configuration names."""
    given = tasks if tasks is not None else () if task_files else config.tasks
    return [*given, *task_files]


def needs_memory(config: EvalConfig) -> str:
    """What to say when memory runs out."""
    return (
        f"memory ran out while evaluating; lower eval.batch (--batch, now {config.batch}) or eval.max_tokens "
        f"(--max-tokens, now {config.max_tokens}), or place the target elsewhere (--target-device)"
    )


def decode_tasks(
    target: Target,
    parts: Parts,
    prompts: Mapping[str, Prompts],
    config: EvalConfig,
    *,
    trace: str | Path | None = None,
    timeline: str | Path | None = None,
    world: World = ALONE,
) -> dict[str, list[list[RequestRound]]]:
    """Decode each task's prompts; the rounds of each prompt, also to the files that are named."""
    steps = Timeline()
    observers = [] if timeline is None else [steps]
    found = {}
    with ExitStack() as stack:
        writer = None
        if trace is not None:
            header = TraceHeader.of(target, parts, config.temperature)
            writer = stack.enter_context(write_trace(Path(trace), header))
        for task, of_task in prompts.items():
            if writer is not None:
                writer.begin(task)
            found[task] = decode_rounds(
                target, parts, of_task, config, observers=observers, tracer=writer, world=world
            )
    if timeline is not None:
        with writing(Path(timeline), lambda: "choose another --timeline"):
            write_json(Path(timeline), steps.to_json())
    return found


def make_report(
    target: Target,
    parts: Parts,
    config: EvalConfig,
    by_task: Mapping[str, list[list[RequestRound]]],
    speed: Speed,
) -> EvalReport:
    """What the rounds of each task's prompts and the timings say."""
    draft_length = parts.strategy.draft_length
    results = {
        name: measure_acceptance(rounds, draft_length=draft_length, seed=config.seed)
        for name, rounds in by_task.items()
    }
    everything = [rounds for found in by_task.values() for rounds in found]
    total = measure_acceptance(everything, draft_length=draft_length, seed=config.seed)
    round_ms = speed.draft_ms + speed.verify_ms
    tau = total.accepted_length
    return EvalReport(
        strategy=parts.strategy.name,
        verifier=parts.verifier.name,
        target=target.name,
        device=_describe(target.device),
        verify_kernel=backend_for(target.device, target.dtype).name,
        draft_length=draft_length,
        temperature=config.temperature,
        num_prompts=total.num_prompts,
        num_rounds=total.num_rounds,
        accepted_length=tau,
        rates=total.rates,
        tokens_per_s=speed.tokens_per_s,
        tokens_per_s_plain=speed.tokens_per_s_plain,
        speedup=speed.speedup,
        predicted_speedup=speed.target_ms * tau.mean / round_ms if tau and round_ms else None,
        draft_ms=speed.draft_ms,
        verify_ms=speed.verify_ms,
        target_ms=speed.target_ms,
        tokens_per_s_transformers=speed.tokens_per_s_transformers,
        tasks={name: TaskResult(found.accepted_length, found.num_prompts) for name, found in results.items()},
        versions=versions(),
    )


def _describe(device: torch.device) -> str:
    return f"{device} ({device_name(device)})" if device.type == "cuda" else str(device)
