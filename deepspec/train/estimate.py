"""What a training run would take, before it is begun: two steps are taken, and nothing is written."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from deepspec.distributed import of_environment
from deepspec.errors import ConfigError
from deepspec.paths import existing_parent
from deepspec.plugins import create_plugin_manager
from deepspec.resources import memory
from deepspec.train.folder import open_folder
from deepspec.train.prepare import build
from deepspec.train.trainer import memory_advice

if TYPE_CHECKING:
    import pluggy

    from deepspec.config import RunConfig
    from deepspec.train.trainer import Trainer


@dataclass(frozen=True)
class TrainingEstimate:
    """Sizes of a run, and what two of its steps took.

    Attributes:
        drafter_parameters: of drafter and head; trained_parameters: those among them that are trained.
        target_parameters: as loaded, which with stored features is without decoder layers.
        text_tokens: of the training text; num_rows: rows it is packed into.
        step_tokens: of the second step, padding left out; epochs: times that the run reads each row.
        memory_bytes: the largest so far: allocated on a CUDA device, else of the whole process.
        disk_bytes: of the newest checkpoints, the best and the one being written; free_bytes: where they go.
        step_seconds: of the second step. seconds: of all steps, without validations and checkpoints.
    """

    drafter_parameters: int
    trained_parameters: int
    target_parameters: int
    text_tokens: int
    num_rows: int
    step_tokens: int
    epochs: float
    memory_bytes: int
    disk_bytes: int
    free_bytes: int
    step_seconds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return {"schema": 1, **asdict(self)}


def estimate(config: RunConfig, manager: pluggy.PluginManager | None = None) -> TrainingEstimate:
    """Build what training by ``config`` builds, and take two steps.

    Raises:
        ConfigError, DataError, TargetError, CheckpointError: what training would refuse.
        ResourceError: memory ran out.
    """
    if not of_environment().is_alone:
        raise ConfigError("--dry-run tries two steps in one process; start it without torchrun")
    folder = open_folder(config, resume=False)
    trainer = build(config, None, check_tasks=False, manager=manager or create_plugin_manager()).trainer
    with memory(lambda: f"memory ran out in a step; {memory_advice(config.train)}"):
        trainer.step(0, measure=True)
        started = time.perf_counter()
        done = trainer.step(1, measure=trainer.objective.reads_target)
        seconds = time.perf_counter() - started
    weights = list(trainer.modules.parameters())
    saved = [*trainer.modules.state_dict().values(), *trainer.optimizer.state_tensors().values()]
    return TrainingEstimate(
        drafter_parameters=sum(weight.numel() for weight in weights),
        trained_parameters=sum(weight.numel() for weight in weights if weight.requires_grad),
        target_parameters=sum(weight.numel() for weight in trainer.target.model.parameters()),
        text_tokens=trainer.sampler.corpus.num_tokens,
        num_rows=trainer.sampler.num_rows,
        step_tokens=done.num_tokens,
        epochs=config.train.num_steps * config.train.sequences_per_step / trainer.sampler.num_rows,
        memory_bytes=_peak_memory(trainer),
        disk_bytes=(config.train.keep_checkpoints + 2) * sum(tensor.nbytes for tensor in saved),
        free_bytes=shutil.disk_usage(existing_parent(folder)).free,
        step_seconds=seconds,
        seconds=seconds * config.train.num_steps,
    )


def _peak_memory(trainer: Trainer) -> int:
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
