"""A drafter that takes weights or sizes from elsewhere needs only the checkpoint once it has one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from deepspec.config import RunConfig, TrainConfig
from deepspec.errors import CheckpointError
from deepspec.exact.parts import ToyDrafter
from deepspec.exact.toy import ToyTarget
from deepspec.hookspecs import hookimpl
from deepspec.interfaces import BuildContext, PartConfig
from deepspec.plugins import create_plugin_manager, register
from deepspec.runs import pinned, read_state, write_json
from deepspec.strategy import Parts, Strategy
from deepspec.train.trainer import Trainer, make_objective

ROWS = 11


class TableConfig(PartConfig):
    """Where the table is, or how large it is."""

    path: str | None = None
    rows: int | None = None


class TableDrafter(ToyDrafter):
    """Has a table whose size it finds where ``path`` says."""

    name = "table"
    Config = TableConfig
    config: TableConfig

    def __init__(self, config: TableConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.table = nn.Embedding(config.rows or ROWS, context.target.hidden_size)

    @property
    def saved_options(self) -> Mapping[str, object]:
        return {"rows": self.table.num_embeddings}


class _Plugin:
    @hookimpl
    def deepspec_parts(self) -> list[type]:
        return [TableDrafter]


def _parts(**options: object) -> Parts:
    manager = create_plugin_manager()
    register(manager, _Plugin(), name="made")
    strategy = Strategy(name="mine", draft_length=2, drafter={"type": "table", **options})
    return strategy.build(ToyTarget(5).info, manager=manager)


def test_parts_know_the_options_that_a_checkpoint_keeps() -> None:
    given = {"type": "table", "path": "gone.bin"}
    parts = _parts(path="gone.bin")
    assert parts.strategy.drafter.model_dump() == {"type": "table", "rows": ROWS}
    config = RunConfig(strategy=parts.strategy.replace(drafter=given))
    state = {"strategy": parts.strategy.model_dump(), "target": {"revision": None}}
    assert pinned(config, state).strategy == parts.strategy
    assert config.strategy.drafter.model_dump() == given


def test_by_default_they_are_the_ones_that_were_given() -> None:
    strategy = Strategy.named("dspark").replace(drafter={"target_layers": (0, 1), "num_layers": 1})
    parts = strategy.build(ToyTarget(5).info)
    assert parts.strategy.model_dump(mode="json") == strategy.model_dump(mode="json")


def test_a_checkpoint_without_its_strategy_is_damaged(tmp_path: Path) -> None:
    write_json(tmp_path / "state.json", {"format": 1, "step": 3, "target": {}})
    with pytest.raises(CheckpointError, match="lacks 'strategy'"):
        read_state(tmp_path)


def test_muon_does_not_take_tables_of_any_number_of_rows() -> None:
    parts, target = _parts(), ToyTarget(5)
    config = RunConfig(strategy=parts.strategy, train=TrainConfig(num_steps=1))
    trainer = Trainer(
        parts,
        target,
        objective=make_objective(parts, target, create_plugin_manager()),
        sampler=SimpleNamespace(),
        config=config,
        device=target.device,
    )
    for weight in parts.modules().parameters():
        weight.grad = torch.ones_like(weight)
    trainer.optimizer.step(0)
    updated = set(trainer.optimizer.state_tensors())
    assert "drafter.table.weight/exp_avg" in updated
    assert "drafter.inward.weight/momentum_buffer" in updated
