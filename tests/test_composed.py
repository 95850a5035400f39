"""Strategies that need no training, without a run: n-gram lookup on the demo target, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from deepspec import evaluate, generate, plugins
from deepspec.composed import compose, opened
from deepspec.config import EvalConfig, RunConfig
from deepspec.engine import SamplingParams
from deepspec.errors import ConfigError
from deepspec.evaluate import comparison
from deepspec.hookspecs import PROJECT, hookimpl
from deepspec.strategy import Strategy
from tests.command_line import run
from tests.exact.made_parts import Still
from tests.tiny_runs import EVAL_KEYS, save_prompts, save_target, untrained_run

NGRAM = Path(__file__).parents[1] / "plugins" / "deepspec-ngram"
TEXT = "import os\nimport sys\nimport os\nimport"


class Ready(Still):
    """Its weights are said to come from elsewhere."""

    name = "ready"
    pretrained = True


class _Ready:
    @hookimpl
    def deepspec_parts(self) -> list[type]:
        return [Ready]

    @hookimpl
    def deepspec_strategies(self) -> list[Strategy]:
        return [Strategy(name="ready", drafter="ready")]


ready = _Ready()


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the n-gram plugin were installed, and one whose drafter has weights of its own."""
    monkeypatch.syspath_prepend(str(NGRAM))
    monkeypatch.delenv("DEEPSPEC_BLOCK_PLUGINS")  # where the first is installed, it is blocked in tests
    points = [
        *(point for point in plugins._entry_points() if point.dist and point.dist.name == "deepspec"),
        EntryPoint("ngram", "deepspec_ngram", PROJECT),
        EntryPoint("ready", "tests.test_composed:ready", PROJECT),
    ]
    monkeypatch.setattr(plugins, "_entry_points", lambda: points)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


def config(name: str, tiny: Path, **changes: object) -> RunConfig:
    strategy = Strategy.named(name).replace(**changes)
    return RunConfig.model_validate({"strategy": strategy, "target": {"name": str(tiny)}, "device": "cpu"})


def test_a_proposer_generates_what_plain_decoding_does_and_accepts_some_of_it() -> None:
    words = ["generate", "--prompt", TEXT, "--temperature", "0", "--max-tokens", "24", "--json"]
    found = run(*words, "--strategy", "ngram", "--set", "draft_length=3", "--set", "drafter.max_ngram=2")
    plain = run(*words, "--plain")
    assert found.code == 0, found.err
    assert found.json["text"] == plain.json["text"]
    assert found.json["accepted_length"] > plain.json["accepted_length"] == 1
    assert set(found.json) == set(plain.json)


def test_a_proposer_is_measured_and_its_settings_can_be_set(tiny: Path, tmp_path: Path) -> None:
    prompts = save_prompts(tmp_path / "mine.jsonl", [f"abcabc {n} abcabc" for n in range(3)])
    words = ["--target", tiny, "--device", "cpu", "--task-file", f"mine={prompts}", "--json"]
    sets = ["--set", "draft_length=2", "--set", "eval.max_tokens=12", "--set", "eval.temperature=0"]
    ran = run("eval", "--strategy", "ngram", *words, *sets, "--num-prompts", "2")
    assert ran.code == 0, ran.err
    found = ran.json
    assert set(found) >= EVAL_KEYS
    assert (found["strategy"], found["target"], found["draft_length"]) == ("ngram", str(tiny), 2)
    assert (found["temperature"], found["num_prompts"]) == (0, 2)
    observed, accepted = found["counts"]["observed"], found["counts"]["accepted"]
    assert accepted[0] <= observed[0] <= found["num_rounds"]
    assert observed[0] > 0
    changes = {"max_tokens": 12, "temperature": 0.0, "num_prompts": 2}
    strategy = Strategy.named("ngram").replace(draft_length=2)
    again = evaluate(strategy, target=str(tiny), tasks=[f"mine={prompts}"], config=EvalConfig(**changes))
    assert again.to_json()["counts"] == found["counts"]


def test_from_python_a_strategy_stands_for_itself(tiny: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=8)
    strategy = Strategy.named("ngram")
    pieces: Iterator[str] = generate(strategy, "abcabc", target=str(tiny), params=params, device="cpu")
    assert "".join(pieces) == "".join(generate(compose(config("ngram", tiny)), "abcabc", params=params))


def test_a_drafter_whose_weights_come_from_elsewhere_needs_no_run(tiny: Path) -> None:
    made = compose(config("ready", tiny))
    assert (made.parts.drafter.name, made.target.name, made.parts.drafter.training) == (
        "ready",
        str(tiny),
        False,
    )


@pytest.mark.parametrize(
    ("name", "changes", "untrained"),
    [
        ("dflash", {"drafter": {"num_target_layers": 1}}, "drafter 'dflash'"),
        ("dspark", {"drafter": {"num_target_layers": 1}}, "drafter 'dflash' and head 'markov'"),
        ("ready", {"head": "markov"}, "head 'markov'"),
    ],
)
def test_weights_that_nobody_has_trained_are_refused_in_one_line(
    tiny: Path, name: str, changes: dict[str, object], untrained: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        compose(config(name, tiny, **changes))
    said = f"strategy {name!r}: nobody has trained {untrained} yet; run `deepspec train --strategy {name}`"
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_run_has_its_own_target() -> None:
    with pytest.raises(ConfigError, match="target 'demo' was given beside a run"):
        opened("demo", target="demo")
    loaded = untrained_run()
    assert opened(loaded) is loaded


def test_training_what_has_no_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = run("train", "--strategy", "ngram", "--out", out)
    assert (ran.code, ran.out) == (2, "")
    said = "drafter 'ngram' has no weights to train; measure it as it is: deepspec eval --strategy ngram"
    assert ran.err == f"error: {said}\n"
    assert not out.exists()


def test_compare_measures_strategies_beside_runs_over_the_same_prompts(monkeypatch) -> None:
    for name, value in (("BATCH", 2), ("_NUM_ALONE", 1), ("_NUM_BLOCKS", 1)):
        monkeypatch.setattr(comparison, name, value)
    words = ["compare", "demo", "--strategy", "ngram", "--tasks", "stdlib", "--num-prompts", "3"]
    found = run(*words, "--max-tokens", "12", "--json", "-q")
    assert found.code == 0, found.err
    trained, untrained = found.json["runs"]
    assert (trained["name"], untrained["name"], untrained["strategy"]) == ("demo", "ngram", "ngram")
    assert (untrained["step"], untrained["parameters"], untrained["train_flops"]) == (0, 0, None)
    assert len(untrained["prompts"].split()) == len(trained["prompts"].split()) == 3
    [pair] = found.json["paired"]
    means = [one["accepted_length"]["mean"] for one in (trained, untrained)]
    assert pair["difference"]["mean"] == pytest.approx(means[0] - means[1])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["dflash"], "nobody has trained drafter 'dflash' yet"),
        (["ngram", "ngram"], "'ngram' is given twice"),
        (["ngran"], "ngram"),
    ],
)
def test_compare_refuses_what_needs_training_or_comes_twice(given: list[str], complaint: str) -> None:
    found = run("compare", "demo", *(word for name in given for word in ("--strategy", name)))
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert complaint in found.err
