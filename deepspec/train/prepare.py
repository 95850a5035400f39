"""Everything before the first step: configuration, target, text, draft model, state to resume.

All input is checked here, and the run folder is made only when nothing is left that could be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deepspec.choice import newest_whole
from deepspec.config import RunConfig
from deepspec.data import BatchSampler, TokenizedCorpus
from deepspec.distributed import ALONE, World
from deepspec.errors import CheckpointError, ConfigError
from deepspec.evaluate.tasks import collect_prompts
from deepspec.features import FeatureSource, SourceContext
from deepspec.plugins import resolve_part
from deepspec.records import TrainingCost
from deepspec.runs import check_target, pinned, read_state, write_json
from deepspec.strategy import Strategy
from deepspec.target import Target
from deepspec.target.load import resolve_device
from deepspec.train.assemble import assemble, copy_target_layers
from deepspec.train.checkpoint import read_optimizer, read_weights, remove_partial, set_aside
from deepspec.train.initial import start_from_run
from deepspec.train.logs import cut_logs
from deepspec.train.shares import check_share, told_by
from deepspec.train.text import corpora
from deepspec.train.trainer import Trainer, make_objective
from deepspec.train.validation import Validation, say_what_is_not_decoded, write_prompts

if TYPE_CHECKING:
    import pluggy

    from deepspec.interfaces import Drafter
    from deepspec.strategy import Parts

logger = logging.getLogger(__name__)

_NOTHING = TrainingCost(train_tokens=0, train_seconds=0.0, train_flops=0, train_flops_target=0)


@dataclass(frozen=True)
class Built:
    """All that is in memory before the first step.

    Attributes:
        vocabulary_coverage: share of the text's labels that can be drafted, None when all can.
        init_from: the run, step and strategy whose drafter this one began as, None when it was no run's.
    """

    trainer: Trainer
    validation: Validation
    vocabulary_coverage: float | None
    init_from: dict[str, Any] | None


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to step.

    Attributes:
        first_step: steps already done. cost: what they took.
        vocabulary_coverage: share of the text's labels that can be drafted, None when all can.
        init_from: the run, step and strategy whose drafter this one began as, None when it was no run's.
    """

    folder: Path
    trainer: Trainer
    validation: Validation | None
    first_step: int
    cost: TrainingCost
    vocabulary_coverage: float | None
    init_from: dict[str, Any] | None


def run_config(
    strategy: Strategy | str,
    config: RunConfig | None,
    *,
    target: str | None,
    data: str | Path | Sequence[str | Path] | None,
    out: str | Path | None,
    init_from: str | Path | None,
    manager: pluggy.PluginManager,
) -> RunConfig:
    """One configuration out of ``train``'s arguments, its parts and objective known to exist."""
    chosen = Strategy.named(strategy, manager) if isinstance(strategy, str) else strategy
    chosen.check(manager)
    base = config or RunConfig(strategy=chosen)
    changes: dict[str, Any] = {"strategy": chosen}
    if target is not None:
        changes["target"] = base.target.model_copy(update={"name": target})
    if data is not None:
        paths = [data] if isinstance(data, str | Path) else data
        changes["data"] = base.data.model_copy(update={"paths": tuple(str(path) for path in paths)})
    if out is not None:
        changes["out"] = str(out)
    if init_from is not None:
        changes["train"] = base.train.model_copy(update={"init_from": str(init_from)})
    return base.model_copy(update=changes)


def prepare(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    check_tasks: bool,
    manager: pluggy.PluginManager,
    world: World = ALONE,
) -> Prepared:
    """Load and check everything, then make the folder (or read the state to go on from)."""
    checkpoint = world.from_main(lambda: _newest(folder)) if resume else None
    begun = None if checkpoint is None else Path(checkpoint)
    built = world.together(
        lambda: build(config, begun, check_tasks=check_tasks, manager=manager, world=world)
    )
    if resume:
        first_step, cost = _resumed(folder, begun, built.trainer)
    else:
        first_step, cost = _started(folder, config, built.trainer)
    if world.is_main:
        write_prompts(folder, built.validation)
    return Prepared(
        folder=folder,
        trainer=built.trainer,
        validation=built.validation,
        first_step=first_step,
        cost=cost,
        vocabulary_coverage=built.vocabulary_coverage,
        init_from=built.init_from,
    )


def _newest(folder: Path) -> str | None:
    found = newest_whole(folder)
    return None if found is None else str(found)


def build(
    config: RunConfig,
    checkpoint: Path | None,
    *,
    check_tasks: bool,
    manager: pluggy.PluginManager,
    world: World = ALONE,
) -> Built:
    """Load and check everything; nothing is written.

    With a ``checkpoint`` to go on from, the target and the drafter are those that its run began with.
    """
    begun = config if checkpoint is None else pinned(config, read_state(checkpoint))
    device = resolve_device(config.device)
    source_class: type[FeatureSource] = resolve_part(manager, FeatureSource.kind, config.features.source)
    target = source_class.open_target(begun, str(device))
    precise = torch.float64 if target.dtype == torch.float64 else torch.float32
    parts = assemble(begun.strategy, target, device=device, dtype=precise, seed=config.seed, manager=manager)
    objective = make_objective(parts, target, manager)
    check_fit(config, target, parts)
    check_share(config.train, world)
    if check_tasks:
        collect_prompts(config.eval.tasks, target, config.eval)
    corpus, held_out = world.in_turn(lambda: corpora(config, target, parts))
    world.same_everywhere("target and text", told_by(target, corpus))
    source = source_class(SourceContext.of(config, target, parts.drafter))
    source.check((corpus, held_out))
    rows = {"sequences": config.train.sequences_per_step, "sequence_length": config.data.sequence_length}
    sampler = BatchSampler(corpus, **rows, seed=config.seed)
    validation = Validation.of(held_out, config, max_positions=target.info.max_positions)
    say_what_is_not_decoded(validation, target)
    if config.train.init_from is None and config.train.init_from_target is not False:
        _start_from_target(parts, target, is_required=config.train.init_from_target is True)
    trainer = Trainer(
        parts,
        target,
        objective=objective,
        sampler=sampler,
        config=config,
        device=device,
        source=source,
        world=world,
    )
    coverage, origin = _begin(trainer, corpus, checkpoint)
    return Built(trainer, validation, vocabulary_coverage=coverage, init_from=origin)


def _start_from_target(parts: Parts, target: Target, *, is_required: bool) -> None:
    copied = 0 if parts.drafter.pretrained else copy_target_layers(parts.drafter, target)
    if is_required and not copied:
        raise ConfigError(
            "train.init_from_target: this drafter's layers have weights already, or other names or shapes "
            "than the target's; set it to false"
        )
    logger.info("%d tensors of the drafter start from the target's", copied)


def _begin(
    trainer: Trainer, corpus: TokenizedCorpus, checkpoint: Path | None
) -> tuple[float | None, dict[str, Any] | None]:
    """Settle vocabulary and first weights: the former's coverage, and which run they are from.

    A ``checkpoint`` to go on from has both already.
    """
    run = trainer.config.train.init_from
    if run is None:
        return _choose_vocabulary(trainer.drafter, trainer.target, corpus), None
    if checkpoint is not None:
        state = read_state(checkpoint)
        return state.get("vocabulary_coverage"), state.get("init_from")
    origin = start_from_run(run, trainer.parts, trainer.target)
    ids = trainer.drafter.readout().target_ids
    if ids is None:
        return None, origin
    counts = corpus.label_counts(trainer.target.info.vocab_size)
    return float(counts[ids.cpu()].sum() / counts.sum()), origin


def _choose_vocabulary(drafter: Drafter[Any], target: Target, corpus: TokenizedCorpus) -> float | None:
    """Let the drafter choose its tokens by the text; the same text gives a resumed run the same ones."""
    assert target.tokenizer is not None, "a loaded target always has its tokenizer"
    counts = corpus.label_counts(target.info.vocab_size)
    special = {*target.tokenizer.all_special_ids, *target.stop_token_ids}
    special -= {*drafter.reserved_token_ids}
    coverage = drafter.choose_vocabulary(counts, sorted(i for i in special if i < len(counts)))
    if coverage is not None:
        logger.info("the draft vocabulary covers %.2f %% of the text's labels", 100 * coverage)
    return coverage


def check_fit(config: RunConfig, target: Target, parts: Parts) -> None:
    """Raise ConfigError when there is nothing to train, or the target does not take rows of that length."""
    if not parts.drafter.trainable:
        raise ConfigError(
            f"drafter {parts.drafter.name!r} has no weights to train; measure it as it is: "
            f"deepspec eval --strategy {parts.strategy.name}"
        )
    if config.train.init_from is not None and config.train.init_from_target:
        raise ConfigError(
            "train.init_from_target and train.init_from (--init-from) both say what the drafter starts from; "
            "give one of the two"
        )
    if config.data.sequence_length > target.info.max_positions:
        raise ConfigError(
            f"data.sequence_length is {config.data.sequence_length}; {target.name} accepts up to "
            f"{target.info.max_positions} positions"
        )
    if parts.strategy.draft_length >= config.data.sequence_length:
        raise ConfigError(
            f"draft_length is {parts.strategy.draft_length} and data.sequence_length "
            f"{config.data.sequence_length}; a row holds an anchor and its block, so give a shorter "
            "draft_length or longer rows"
        )


def _started(folder: Path, config: RunConfig, trainer: Trainer) -> tuple[int, TrainingCost]:
    trainer.begin()
    if not trainer.world.is_main:
        return 0, _NOTHING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", config.model_dump(mode="json"))
    except OSError as error:
        raise CheckpointError(
            f"the run folder {folder} cannot be made: {error}; choose another --out"
        ) from error
    return 0, _NOTHING


def _resumed(folder: Path, checkpoint: Path | None, trainer: Trainer) -> tuple[int, TrainingCost]:
    """Load the checkpoint to go on from into ``trainer`` and drop what was logged after it."""
    step, cost = 0, _NOTHING
    if checkpoint is None:
        trainer.begin()
    else:
        state, moments = trainer.world.together(lambda: _read(checkpoint, folder, trainer))
        step, cost = int(state["step"]), TrainingCost.of_state(state)
        trainer.begin()
        trainer.optimizer.load_state_tensors(moments)
    if trainer.world.is_main:
        _clean(folder, checkpoint, step, trainer.config.train.num_steps)
    return step, cost


def _read(checkpoint: Path, folder: Path, trainer: Trainer) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A checkpoint's state and moments; its weights are loaded."""
    state = read_state(checkpoint)
    check_target(state, trainer.target, folder)
    read_weights(checkpoint, trainer.parts)
    return state, read_optimizer(checkpoint)


def _clean(folder: Path, checkpoint: Path | None, step: int, num_steps: int) -> None:
    remove_partial(folder)
    set_aside(folder, checkpoint)
    logged = cut_logs(folder, step)
    where = f"step {step} of {num_steps}" if step else "the start"
    why = "no whole checkpoint is there" if checkpoint is None else f"{checkpoint.name} is the last whole one"
    again = f"; steps {step + 1} to {logged}, done after it, are done again" if logged > step else ""
    logger.info("going on from %s in %s: %s%s", where, folder, why, again)
