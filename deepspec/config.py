"""The one model behind configuration files, flags and ``--set``: what can be set, and every default.

``layers.py`` puts files and flags together and remembers where each value came from; a run folder's
``config.json`` is a :class:`RunConfig`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deepspec.paths import DEMO
from deepspec.strategy import Strategy


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]


class TargetConfig(_Config):
    """The frozen model that drafts are made for."""

    name: str = Field(default=DEMO, min_length=1, description="`demo`, a Hugging Face name, or a folder")
    revision: str | None = Field(default=None, description="commit, branch or tag on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] = Field(
        default="auto", description="what its weights are held in"
    )
    device: str | None = Field(default=None, description="where it runs; null is the run's device")
    parallel: Literal["none", "fsdp"] = Field(
        default="none",
        description="under torchrun: none holds it whole in each process, fsdp shares out its layers",
    )
    trust_remote_code: bool = Field(default=False, description="whether the model's own Python code may run")


class DataConfig(_Config):
    """The text to train on."""

    paths: Names = Field(
        default=(),
        description="JSONL, JSON and Parquet files, folders (of `deepspec data prepare`, or with files at "
        "any depth) and globs; empty is shipped text that the demo target wrote, "
        "or for another target the sources of installed packages",
    )
    sequence_length: int = Field(default=256, ge=8, description="tokens in a training row")
    held_out_fraction: float = Field(
        default=0.02,
        gt=0,
        lt=1,
        description="share of documents to validate on, unless a prepared folder brings its own",
    )


class FeaturesConfig(_Config):
    """Where training gets the target's features from."""

    source: str = Field(
        default="online",
        min_length=1,
        description="online: the target's forward at each step; cached: what `deepspec features` stored",
    )
    folder: str | None = Field(default=None, description="for cached: where they are stored")
    bits: Literal[4, 8, 16, 32] = Field(
        default=8,
        description="for cached: of a stored number; 16 is bfloat16, 32 is float32, 8 and 4 are integers "
        "with a scale",
    )
    load_target: bool = Field(
        default=False,
        description="for cached: load the target's decoder layers, too, so that live evaluations decode",
    )


class TrainConfig(_Config):
    """How the drafter is trained."""

    num_steps: int = Field(default=450, ge=1, description="optimiser steps")
    sequences_per_step: int = Field(default=8, ge=1, description="rows per step, of all processes")
    accumulation: int = Field(
        default=1, ge=1, description="parts a step's rows are computed in, to save memory"
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="under torchrun: ddp holds the drafter whole in each process, fsdp gives each a share",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="keep only what goes into a draft layer and compute it once more on the way back",
    )
    anchors_per_sequence: int = Field(default=48, ge=1, description="draft blocks sampled per row")
    optimizer: Literal["muon", "adamw"] = Field(
        default="muon", description="muon: AdamW for what is no matrix"
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="peak; null is 0.22 / sqrt(H) for muon, 0.77 / H for adamw"
    )
    warmup_fraction: float = Field(default=0.04, ge=0, lt=1, description="share of the steps that warm up")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled")
    clip_norm: float = Field(default=1.0, gt=0, description="largest gradient norm")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="auto: bfloat16 autocast on CUDA, else float32; master weights are float32",
    )
    validate_every: int = Field(default=150, ge=1, description="steps between live evaluations")
    validate_prompts: int = Field(default=16, ge=1, description="held-out prompts that one decodes")
    validate_tokens: int = Field(default=32, ge=1, description="new tokens per prompt there")
    patience: int | None = Field(
        default=None,
        ge=1,
        description="stop after so many live evaluations in a row without a clear gain; null never does",
    )
    checkpoint_every: int = Field(default=150, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints to keep, beside the best")
    log_every: int = Field(default=10, ge=1, description="steps between records")
    tracker: Literal["wandb", "trackio"] | None = Field(
        default=None, description="log there, too, if it is installed; TensorBoard always is"
    )
    init_from: str | None = Field(
        default=None,
        description="run folder, or `demo`, whose drafter training starts from, with a fresh optimiser",
    )
    init_from_target: bool | None = Field(
        default=None,
        description="start draft layers from the target's last layers; null does so where shapes agree",
    )


class EvalConfig(_Config):
    """How a drafter is measured."""

    tasks: Names = Field(default=("stdlib", "prose"), min_length=1, description="named prompt sources")
    num_prompts: int = Field(default=64, ge=1, description="per task")
    max_tokens: int = Field(default=128, ge=1, description="new tokens per prompt")
    temperature: float = Field(default=1.0, ge=0, description="0 is greedy")
    top_k: int = Field(default=0, ge=0, description="0 is off")
    top_p: float = Field(default=1.0, gt=0, le=1, description="1 is off")
    min_p: float = Field(default=0.0, ge=0, le=1, description="0 is off")
    batch: int = Field(default=16, ge=1, description="requests decoded together")
    seed: int = Field(default=0, ge=0, description="of the sampling")


class Settings(_Config):
    """Everything but the strategy."""

    target: TargetConfig = Field(default=TargetConfig(), description="the frozen model")
    data: DataConfig = Field(default=DataConfig(), description="the text")
    features: FeaturesConfig = Field(default=FeaturesConfig(), description="the target's features")
    train: TrainConfig = Field(default=TrainConfig(), description="the training")
    eval: EvalConfig = Field(default=EvalConfig(), description="the measurement")
    device: str | None = Field(default=None, description="cpu, cuda:1, mps; null picks the best there is")
    seed: int = Field(default=0, ge=0, description="of initialisation, data order and anchors")
    out: str | None = Field(default=None, description="run folder; null is runs/<strategy>-<time>")


class RunConfig(Settings):
    """A whole run, as written to its ``config.json``."""

    strategy: Strategy = Field(description="the five parts and the objective")
