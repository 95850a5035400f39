"""A strategy is a value: what replace does, and what build and check say of parts that do not fit."""

from __future__ import annotations

import pluggy
import pytest
import torch

from deepspec.errors import ConfigError
from deepspec.hookspecs import hookimpl
from deepspec.interfaces import BuildContext, PartConfig, Readout, Rope, TargetInfo
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Objective, PartSpec, Strategy

BASE = Strategy(name="base", drafter="block", head={"type": "markov", "rank": 8, "confidence": "none"})


def test_a_bare_name_is_a_part_without_options() -> None:
    assert BASE.drafter == PartSpec(type="block")
    assert BASE.drafter.options == {}
    assert BASE.head.options == {"rank": 8, "confidence": "none"}


def test_replace_with_a_type_replaces_the_part() -> None:
    assert BASE.replace(head={"type": "rnn", "rank": 64}).head.options == {"rank": 64}
    assert BASE.replace(head="none").head.options == {}


def test_replace_without_a_type_merges_options() -> None:
    assert BASE.replace(head={"rank": 64}).head.options == {"rank": 64, "confidence": "none"}


def test_replace_merges_the_objective_by_field() -> None:
    changed = BASE.replace(objective={"position_decay": None})
    assert changed.objective == Objective(position_decay=None)


def test_an_objective_may_be_named() -> None:
    paper = Objective(terms={"l1": 0.9}, position_weights="survival")
    base = BASE.replace(objectives={"paper": paper}, objective={"position_decay": None})
    assert base.replace(objective="paper").objective == paper
    assert base.replace(objective="paper").replace(objective={"position_decay": 2.0}).objective == Objective(
        terms={"l1": 0.9}, position_weights="survival", position_decay=2.0
    )
    assert base.objective == Objective(position_decay=None)
    with pytest.raises(
        ConfigError, match="objective = 'papr': no objective of 'base'; known: paper; did"
    ) as caught:
        base.replace(objective="papr")
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="'paper': no objective of 'base'; known: none"):
        BASE.replace(objective="paper")


def test_replace_leaves_the_original_alone() -> None:
    before = BASE.model_dump()
    BASE.replace(head={"rank": 1}, draft_length=3)
    assert BASE.model_dump() == before


def test_replace_of_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key 'verifer'.*did you mean 'verifier'"):
        BASE.replace(verifer="block")


def test_two_strategies_with_other_options_differ() -> None:
    assert BASE.replace(head={"rank": 9}) != BASE
    assert BASE.replace(head={"rank": 8}) == BASE


@pytest.mark.parametrize("terms", [{}, {"ce": 0.0}, {"ce": 1.0, "l1": -1.0}, {"ce": float("nan")}])
def test_an_objective_needs_a_positive_term(terms: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="objective.terms"):
        BASE.replace(objective={"terms": terms})


def test_an_unknown_strategy_says_that_a_new_entry_point_needs_a_reinstall() -> None:
    with pytest.raises(ConfigError, match="unknown strategy 'base'; known: none; .*needs a reinstall"):
        Strategy.named("base", create_plugin_manager(entry_points=False))


class _Parts:
    """A drafter that is only a configuration, and the stock parts."""

    @hookimpl
    def deepspec_parts(self) -> list[type | str]:
        from deepspec import stock

        class BlockConfig(PartConfig):
            hidden_size: int = 6

        class Block:
            name = "block"
            kind = "drafter"
            Config = BlockConfig

            def __init__(self, config: BlockConfig, context: BuildContext) -> None:
                self.hidden_size = config.hidden_size
                self.saved_options = config.model_dump(exclude_unset=True)

            def readout(self) -> Readout:
                return Readout(weight=torch.zeros(11, self.hidden_size))

        return [Block, *stock.deepspec_parts()]


def target_info() -> TargetInfo:
    table = torch.zeros(11, 4)
    sizes = {
        "hidden_size": 4,
        "vocab_size": 11,
        "num_layers": 3,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 4,
    }
    return TargetInfo(
        **sizes,
        intermediate_size=8,
        rms_norm_eps=1e-6,
        rope=Rope.plain(1e4, 4),
        max_positions=64,
        mask_token_id=None,
        embedding=table,
        embedding_scale=1.0,
        lm_head=table,
        final_softcap=None,
    )


def manager_with_parts() -> pluggy.PluginManager:
    manager = create_plugin_manager(entry_points=False)
    register(manager, _Parts(), name="toy")
    return manager


def test_parts_after_the_drafter_are_told_its_sizes() -> None:
    parts = BASE.replace(head="none").build(target_info(), manager=manager_with_parts())
    assert parts.head.context.hidden_size == 6
    assert parts.head.context.draft_vocab_size == 11
    assert parts.policy.context.draft_length == 7


def test_an_unknown_part_names_the_nearest_of_its_kind() -> None:
    with pytest.raises(
        ConfigError,
        match="unknown head 'markow'; known: gated, markov, none, rnn; did you mean 'markov'.*reinstall",
    ):
        BASE.replace(head="markow").check(manager_with_parts())


def test_a_part_of_another_kind_is_not_found() -> None:
    with pytest.raises(ConfigError, match="unknown verifier 'markov'"):
        BASE.replace(verifier="markov").check(manager_with_parts())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rnk": 3}, "head 'markov': unknown key 'rnk' .*did you mean 'rank'"),
        ({"rank": 0}, "head 'markov': rank = 0: "),
    ],
)
def test_an_option_that_a_part_does_not_take_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BASE.replace(head=options).check(manager_with_parts())
