"""Layers of configuration: who wins, where a value came from, and what an unknown key says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepspec.config import RunConfig, Settings
from deepspec.errors import ConfigError
from deepspec.hookspecs import hookimpl
from deepspec.layers import Resolved, resolve
from deepspec.plugins import create_plugin_manager, register
from deepspec.strategy import Objective, Strategy


class _Toy:
    @hookimpl
    def deepspec_strategies(self) -> list[Strategy]:
        head = {"type": "low-rank", "rank": 3, "bias": True}
        objective = Objective(terms={"ce": 0.1, "l1": 0.9})
        paper = {"paper": Objective(terms={"l1": 1.0}, position_decay=None)}
        return [
            Strategy(name="toy", drafter="block", head=head, objectives=paper, objective=objective),
            Strategy(name="other", drafter="other"),
        ]


def toy(strategy: str | None = "toy", **layers: object) -> Resolved:
    manager = create_plugin_manager(entry_points=False)
    register(manager, _Toy(), name="toy")
    return resolve(strategy, manager=manager, **layers)


def origins(resolved: Resolved) -> dict[str, str]:
    return {key: origin for key, _, origin in resolved.leaves()}


def yaml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_flags_beat_the_file_and_sets_beat_flags(tmp_path: Path) -> None:
    file = yaml(tmp_path, "train: {num_steps: 1, clip_norm: 2.0, log_every: 3}")
    flags = {"train.num_steps": 10, "train.clip_norm": 20.0}
    config = toy(file=file, flags=flags, sets=["train.num_steps=100"]).config()
    assert (config.train.num_steps, config.train.clip_norm, config.train.log_every) == (100, 20.0, 3)


def test_every_value_remembers_its_origin(tmp_path: Path) -> None:
    file = yaml(tmp_path, "seed: 4\nhead: {rank: 9}")
    found = origins(
        toy(file=file, flags={"target.name": "x", "device": None}, sets=["data.sequence_length=64"])
    )
    assert found["train.num_steps"] == "default"
    assert found["device"] == "default"
    assert found["strategy.head.type"] == "strategy"
    assert found["strategy.calibrator.type"] == "default"
    assert found["seed"] == found["strategy.head.rank"] == "file"
    assert found["target.name"] == found["data.sequence_length"] == found["strategy.name"] == "flag"


def test_options_without_type_join_the_part_and_a_type_replaces_it(tmp_path: Path) -> None:
    merged = toy(sets=["head.rank=64"]).config().strategy.head
    assert (merged.type, merged.options) == ("low-rank", {"rank": 64, "bias": True})
    replaced = toy(sets=["head.rank=64", "head.type=rnn"])
    assert replaced.config().strategy.head.options == {"rank": 64}
    assert origins(replaced)["strategy.head.rank"] == "flag"
    assert toy(sets=["verifier=block"]).config().strategy.verifier.type == "block"
    assert toy(file=yaml(tmp_path, "strategy: toy\nhead: none")).config().strategy.head.options == {}


def test_a_dotted_term_is_added_and_a_whole_mapping_replaces() -> None:
    assert toy(sets=["objective.terms.l1=0.5"]).config().strategy.objective.terms == {"ce": 0.1, "l1": 0.5}
    assert toy(sets=['objective.terms={"ce": 1}']).config().strategy.objective.terms == {"ce": 1.0}


def test_an_objective_given_by_name_is_resolved_and_can_be_changed_further(tmp_path: Path) -> None:
    paper = Objective(terms={"l1": 1.0}, position_decay=None)
    file = yaml(tmp_path, "strategy: toy\nobjective: paper")
    by_file, by_flag = toy(None, file=file), toy(sets=["objective=paper"])
    assert by_file.config().strategy.objective == by_flag.config().strategy.objective == paper
    assert origins(by_file)["strategy.objective.terms.l1"] == "file"
    assert origins(by_flag)["strategy.objective.position_decay"] == "flag"
    changed = toy(None, file=file, sets=["objective.position_decay=2", "objective.terms.ce=0.5"])
    assert changed.config().strategy.objective == Objective(terms={"l1": 1.0, "ce": 0.5}, position_decay=2.0)
    assert toy(sets=["objective.position_decay=2"]).config().strategy.objectives == {"paper": paper}
    again = toy(sets=["objective=paper"]).config().strategy
    assert again.objective == again.objectives["paper"] == paper


def test_a_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    config = toy(
        sets=["objective.terms={l1: 1}", "head=none", "data.paths=[a, b]", "train.learning_rate=1e-3"]
    ).config()
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert toy(None, file=tmp_path / "config.json").config() == config
    assert config.train.learning_rate == 1e-3
    assert config.data.paths == ("a", "b")


def test_a_strategy_flag_replaces_the_one_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(toy().config().model_dump(mode="json")))
    assert toy("other", file=tmp_path / "config.json").config().strategy == Strategy(
        name="other", drafter="other"
    )
    assert toy("other", sets=["strategy=toy"]).config().strategy.name == "toy"


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('strategy = "toy"\n[head]\nrank = 5\n[train]\nnum_steps = 7\n')
    file = yaml(tmp_path, "strategy: toy\nhead: {rank: 5}\ntrain: {num_steps: 7}")
    assert toy(None, file=tmp_path / "run.toml").config() == toy(None, file=file).config()


@pytest.mark.parametrize(
    ("item", "hint"),
    [
        ("trian.num_steps=3", "'train'"),
        ("train.num_step=3", "'num_steps'"),
        ("headd.type=x", "'head'"),
        ("objective.trms.ce=1", "'terms'"),
    ],
)
def test_an_unknown_key_names_the_nearest(item: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"--set: unknown key .* did you mean {hint}"):
        toy(sets=[item])


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key 'train\.steps'"):
        toy(file=yaml(tmp_path, "train: {steps: 3}"))


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.num_steps=many"], "train.num_steps = 'many'"),
        (["train.num_steps=0"], "train.num_steps = 0: .*greater than or equal to 1"),
        (["train.learning_rate=.nan"], "train.learning_rate = nan: .*finite"),
        (["seed.x=1"], "seed = "),
        (["draft_length=0"], "strategy.draft_length = 0"),
        (["objective.terms={}"], "at least one term"),
        (["num_steps"], "write key=value"),
        (["=3"], "write key=value"),
        (["head=none", "head.rank=3"], "set twice"),
        (["head.rank=3", "head=none"], "set twice"),
        (["train.num_steps=[1"], "--set"),
        (["objective=papr"], "strategy.objective = 'papr': .*did you mean 'paper'"),
        (["objective=paper", "objective.position_decay=2"], "set twice"),
    ],
)
def test_a_value_that_does_not_fit_is_one_clear_line(sets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        toy(sets=sets).config()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "a: [", "run.yaml: "),
        ("run.toml", "a = ", "run.toml: "),
        ("run.ini", "", "must end in .toml"),
        ("run.yaml", "- 1", "table of settings"),
        ("run.yaml", "head: none", "belongs to a strategy"),
    ],
)
def test_an_unusable_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        toy(None, file=tmp_path / name)


@pytest.mark.parametrize(
    ("text", "item", "message"),
    [
        (
            "train: 5",
            "train.num_steps=3",
            "'train.num_steps' cannot be set, for 'train' is 5; give 'train' as",
        ),
        ("objective: papr", "objective.terms.ce=3", "cannot be set, for 'strategy.objective' is 'papr'"),
    ],
)
def test_a_key_inside_what_is_no_mapping_is_refused(
    tmp_path: Path, text: str, item: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy(file=yaml(tmp_path, text), sets=[item])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        toy(file="absent.yaml")


def test_without_a_strategy_the_rest_can_be_shown_but_no_run_be_made() -> None:
    settings = toy(None)
    assert not any(key.startswith("strategy") for key in origins(settings))
    with pytest.raises(ConfigError, match="--strategy"):
        settings.config()


def test_each_setting_is_described_and_has_a_default() -> None:
    models = [Settings, *(field.annotation for field in Settings.model_fields.values())]
    for model in models:
        if isinstance(model, type) and hasattr(model, "model_fields"):
            for name, field in model.model_fields.items():
                assert field.description, f"{model.__name__}.{name}"
                assert not field.is_required(), f"{model.__name__}.{name}"


def test_the_schema_takes_a_part_and_an_objective_by_bare_name() -> None:
    schema = RunConfig.model_json_schema()
    assert {"type": "string"} in schema["$defs"]["PartSpec"]["anyOf"]
    assert {"type": "string"} in schema["$defs"]["Strategy"]["properties"]["objective"]["anyOf"]
