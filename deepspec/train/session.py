"""``train``: a whole training run, from its configuration to a run folder that can be resumed.

Everything is checked before the folder is made. A run that stops raises
:class:`~deepspec.errors.TrainingError` (a signal, a loss that is not a number) or
:class:`~deepspec.errors.ResourceError` (memory or disk that ran out) and says how to go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from deepspec.config import RunConfig
from deepspec.distributed import join
from deepspec.errors import TrainingError
from deepspec.plugins import create_plugin_manager
from deepspec.records import TrainingCost
from deepspec.resources import memory, writing
from deepspec.runs import Run, checkpoint_path, newest_checkpoint, target_record
from deepspec.train.between import StepClock, Stop, stop_signals
from deepspec.train.checkpoint import drop_old, write_checkpoint
from deepspec.train.flops import StepFlops, count_step
from deepspec.train.folder import open_folder, values_to_share
from deepspec.train.live import LiveEvaluations, take_best
from deepspec.train.logs import RunLog, check_tracker
from deepspec.train.prepare import Prepared, prepare, run_config
from deepspec.train.trainer import StepResult, memory_advice
from deepspec.types import StepRecord

if TYPE_CHECKING:
    import pluggy

    from deepspec.strategy import Strategy

logger = logging.getLogger(__name__)

Observer = Callable[[StepRecord], None]


class TrainingInterruptedError(TrainingError):
    """A signal ended the run after a checkpoint; the message says how to go on."""


def train(
    strategy: Strategy | str,
    *,
    target: str | None = None,
    data: str | Path | Sequence[str | Path] | None = None,
    config: RunConfig | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    init_from: str | Path | None = None,
    check_tasks: bool = False,
    observers: Sequence[Observer] = (),
    manager: pluggy.PluginManager | None = None,
) -> Run:
    """Train a drafter and return it, loaded. Under ``torchrun`` every process calls this and shares the work.

    With stored features (``features.source``) the run's target has no decoder layers; ``deepspec.load`` of
    the run's folder gives it with all of them.

    Args:
        strategy: a composition or its registered name.
        target: instead of the configuration's: ``demo``, a Hugging Face name, or a folder.
        data: instead of the configuration's: files, folders, globs.
        config: everything else; the defaults when None.
        out: run folder, ``runs/<strategy>-<time>`` when None; it must not hold a run unless ``resume``.
        resume: go on from the newest checkpoint in ``out``, whose configuration must be the same.
        init_from: instead of the configuration's: a run folder or ``demo`` to start from the drafter of.
        check_tasks: first see that the prompts of the configuration's ``eval.tasks`` can be had, so that an
            evaluation afterwards does not fail for want of them.
        observers: called with each optimiser step's record, in the main process.
        manager: the plugins to find parts in, all installed ones when None.

    Raises:
        ConfigError, DataError, TargetError, CheckpointError: bad input, before anything is written.
        TrainingError, ResourceError: the run had to stop.
        DistributedError: another process is gone. ElsewhereError: another process raises what is to be told.
    """
    manager = manager or create_plugin_manager()
    world = join()
    with world.watched(lambda: "no step was done; start again"):
        settings = world.together(
            lambda: run_config(
                strategy, config, target=target, data=data, out=out, init_from=init_from, manager=manager
            )
        )
        world.same_everywhere("settings", values_to_share(settings))
        world.together(lambda: check_tracker(settings.train.tracker))
        folder = Path(world.from_main(lambda: str(open_folder(settings, resume=resume))))
        prepared = world.together(
            lambda: prepare(
                settings, folder, resume=resume, check_tasks=check_tasks, manager=manager, world=world
            )
        )
    session = _Session(prepared, observers, manager)
    with stop_signals() as stop, world.watched(session.how_to_go_on):
        session.run(stop)
        parts = prepared.trainer.decoding_parts(manager)
        step = world.from_main(lambda: take_best(prepared.folder, parts))
        world.spread_(list(parts.modules().state_dict().values()))
    parts.modules().eval()
    return Run(
        path=prepared.folder,
        config=settings,
        target=prepared.trainer.target,
        parts=parts,
        step=step,
        cost=session.cost,
    )


class _Session:
    """The loop over optimiser steps, and what happens between them."""

    def __init__(
        self, prepared: Prepared, observers: Sequence[Observer], manager: pluggy.PluginManager
    ) -> None:
        self.trainer = prepared.trainer
        self.world = prepared.trainer.world
        self.validation = prepared.validation
        self.folder = prepared.folder
        self.config = prepared.trainer.config.train
        self.first_step = prepared.first_step
        self._observers = tuple(observers)
        self._hook = manager.hook.deepspec_step_trained
        self._clock = StepClock(self.config.log_every)
        self._log = RunLog(
            prepared.folder,
            prepared.trainer.config,
            first_step=self.first_step,
            advice=self._disk_advice,
            is_silent=not self.world.is_main,
        )
        self.live = LiveEvaluations(prepared.folder, self._log, patience=self.config.patience)
        self._expected = 0.0
        self.cost = prepared.cost
        self.vocabulary_coverage = prepared.vocabulary_coverage
        self.init_from = prepared.init_from

    def run(self, stop: Stop) -> None:
        """All steps that are left; raises TrainingError when it has to stop."""
        if self.world.is_main:
            self._drop_old()  # a run that was killed may have left some
        is_whole = not self._is_due(self.first_step) or self.world.from_main(
            lambda: self.live.has(self.first_step)
        )
        if is_whole and (self.first_step == self.config.num_steps or self._stops_early(self.first_step)):
            return
        try:
            self._log.started(self.first_step, self.trainer.device, num_processes=self.world.size)
            if not is_whole:  # the run was stopped before it, or in it
                self._validate(self.first_step)
            if not self._stops_early(self.first_step):
                self._run_steps(stop)
        finally:
            self._log.close()

    def _run_steps(self, stop: Stop) -> None:
        steps = self.config.num_steps
        with memory(lambda: self._step_needs_memory(self.first_step + 1)):
            flops = count_step(self.trainer)
        for number in range(self.first_step, steps):
            done = number + 1
            self._step(number, flops)
            if done % self.config.checkpoint_every == 0 or done == steps:
                self._save(done)
            if self._is_due(done) and not self._signal(stop):
                self._validate(done)
            if signal_name := self._signal(stop):
                raise self.world.agreed(self._interrupted(signal_name, done))
            if self._stops_early(done):
                break

    def _signal(self, stop: Stop) -> str | None:
        """The signal that reached some process."""
        names = ("SIGTERM", "SIGINT")
        counts = self.world.add_up([float(stop.signal_name == name) for name in names])
        return next((name for name, count in zip(names, counts, strict=True) if count), None)

    def _is_due(self, step: int) -> bool:
        """Whether a live evaluation belongs behind ``step``."""
        is_last = step == self.config.num_steps
        return (
            self.validation is not None and step > 0 and (step % self.config.validate_every == 0 or is_last)
        )

    def _stops_early(self, step: int) -> bool:
        if not self._is_due(step) or step == self.config.num_steps:
            return False
        reason = self.world.from_main(lambda: self.live.reason_to_stop)
        if reason is None:
            return False
        self._save(step)
        logger.info("training stops after step %d of %d: %s", step, self.config.num_steps, reason)
        return True

    def _interrupted(self, signal_name: str, step: int) -> TrainingInterruptedError:
        """Save where the run stands, and say how to go on from there."""
        saved, steps = self._save(step), self.config.num_steps
        how = f"go on with: {self._resume_command()}"
        if step == steps:
            how = f"training is complete, measure it with: deepspec eval {self.folder}"
        return TrainingInterruptedError(
            f"stopped by {signal_name} after step {step} of {steps}, saved in {saved}; {how}"
        )

    def _step(self, number: int, flops: StepFlops) -> None:
        started = time.perf_counter()
        is_logged = (number + 1) % self.config.log_every == 0 or number + 1 == self.config.num_steps
        is_measured = is_logged or number == self.first_step
        with memory(lambda: self._step_needs_memory(number + 1)):
            result = self.trainer.step(number, measure=is_measured or self.trainer.objective.reads_target)
        self._check_finite(number + 1, result)
        seconds = time.perf_counter() - started
        self._clock.add(seconds, result.num_tokens)
        self.cost += TrainingCost(result.num_tokens, seconds, flops.total, flops.target)
        record = self._record(number + 1, result)
        if is_logged:
            self._log.write("step", asdict(record))
        if self.world.is_main:
            for observe in self._observers:
                observe(record)
            self._hook(record=record)

    def _record(self, step: int, result: StepResult) -> StepRecord:
        if result.expected_accepted_length is not None:
            self._expected = result.expected_accepted_length
        return StepRecord(
            step=step,
            num_steps=self.config.num_steps,
            loss=result.loss,
            terms=result.terms,
            expected_accepted_length=self._expected,
            learning_rate=result.learning_rate,
            gradient_norm=result.gradient_norm,
            tokens_per_s=self._clock.tokens_per_s,
            seconds_left=(self.config.num_steps - step) * self._clock.seconds_per_step,
        )

    def _save(self, step: int) -> Path:
        state = {
            "target": target_record(self.trainer.target),
            **asdict(self.cost),
            "vocabulary_coverage": self.vocabulary_coverage,
            "init_from": self.init_from,
        }
        weights, moments = self.trainer.weights(), self.trainer.moments()

        def write() -> str:
            self._log.sync()
            with writing(checkpoint_path(self.folder, step), self._disk_advice):
                path = write_checkpoint(
                    self.folder,
                    step,
                    parts=self.trainer.parts,
                    weights=weights,
                    optimizer=moments,
                    state=state,
                    keep=self.config.keep_checkpoints,
                    best=self.live.best,
                )
            return str(path)

        return Path(self.world.from_main(write))

    def _validate(self, step: int) -> None:
        if self.validation is None:
            return
        with memory(lambda: self._validation_needs_memory(step)):
            found = self.validation.measure(self.trainer)
        if self.world.from_main(lambda: self.live.add(step, found)):
            self._save(step)
            self.world.from_main(self._keep_best)

    def _keep_best(self) -> None:
        self.live.keep_best()
        self._drop_old()

    def _drop_old(self) -> None:
        drop_old(self.folder, keep=self.config.keep_checkpoints, best=self.live.best)

    def _check_finite(self, step: int, result: StepResult) -> None:
        for what, value in (("loss", result.loss), ("gradient norm", result.gradient_norm)):
            if not -float("inf") < value < float("inf"):
                error = TrainingError(
                    f"the {what} of step {step} is {value}, so the run stopped; {self._last_good()}; lower "
                    f"--set train.learning_rate (now {self.trainer.optimizer.peak:g}) in a new run"
                )
                raise self.world.agreed(error)

    def how_to_go_on(self) -> str:
        """After another process is gone."""
        return f"{self._last_good()}; go on with: {self._resume_command()}"

    def _disk_advice(self) -> str:
        return f"{self._last_good()}; once there is room, go on with: {self._resume_command()}"

    def _resume_command(self) -> str:
        alone = f"deepspec train --resume --out {self.folder}"
        return alone if self.world.is_alone else f"torchrun ... -m {alone} (with any number of processes)"

    def _step_needs_memory(self, step: int) -> str:
        return f"memory ran out in step {step}; {self._last_good()}; {memory_advice(self.config)}"

    def _validation_needs_memory(self, step: int) -> str:
        return (
            f"memory ran out while validating after step {step}; {self._last_good()}; lower "
            f"--set train.sequences_per_step (now {self.config.sequences_per_step}) or "
            "--set data.sequence_length, or hold the target's weights in less (--set target.dtype=bfloat16)"
        )

    def _last_good(self) -> str:
        newest = newest_checkpoint(self.folder)
        return f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
