"""The line a user follows, on a tiny target: train, resume, evaluate, generate, list."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import datasets
import pytest

from deepspec import runs
from tests.command_line import Ran, run
from tests.tiny_runs import EVAL_KEYS, config, save_prompts, save_target, save_text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, text, prompts and a configuration file."""
    folder = tmp_path_factory.mktemp("line")
    settings = config(save_target(folder / "target"), save_text(folder / "text.jsonl"))
    prompts = save_prompts(folder / "prompts.jsonl", [f"document {n}: the cat" for n in range(4)])
    values = settings.model_dump(mode="json")
    values["train"] |= {"num_steps": 4, "checkpoint_every": 2}
    values["eval"] |= {"tasks": [f"mine={prompts}"], "max_tokens": 12, "batch": 2}
    (folder / "run.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def trained(place: Path) -> Ran:
    return run("train", "--config", place / "run.json", "--out", place / "run", "--seed", "1")


def test_training_ends_with_the_table_and_the_run_folder(trained: Ran, place: Path) -> None:
    assert trained.code == 0, trained.err
    for words in ("accepted length τ", "95 % interval", "T_draft, T_verify", "transformers' generate"):
        assert words in trained.out
    assert trained.out.splitlines()[-1] == f"run folder  {place / 'run'}"


def test_progress_is_plain_lines_on_standard_error(trained: Ran) -> None:
    assert "step 4/4  loss" in trained.err
    assert "expected accepted length" in trained.err
    assert "\x1b" not in trained.err + trained.out


def test_flags_reach_the_saved_configuration(trained: Ran, place: Path) -> None:
    saved = json.loads((place / "run" / "config.json").read_text())
    assert saved["seed"] == 1
    assert saved["train"]["num_steps"] == 4


def test_the_run_is_listed_with_its_accepted_length(trained: Ran, place: Path) -> None:
    (row,) = run("runs", place, "--json").json
    measured = json.loads((place / "run" / "eval.json").read_text())
    assert (row["name"], row["strategy"], row["step"]) == ("run", "dspark", 4)
    assert row["accepted_length"] == measured["accepted_length"]["mean"] >= 1
    assert f"{row['accepted_length']:.3f}" in run("runs", place).out


def test_training_again_into_the_folder_is_refused_with_the_way_on(trained: Ran, place: Path) -> None:
    again = run("train", "--config", place / "run.json", "--out", place / "run")
    assert again.code == 2
    assert "--resume" in again.err


def test_resume_needs_only_the_folder_and_says_one_json_document(trained: Ran, place: Path) -> None:
    resumed = run("train", "--resume", "--out", place / "run", "--no-eval", "--json", "-q")
    assert (resumed.code, resumed.err) == (0, "")
    assert resumed.json["step"] == 4
    assert resumed.json["run"] == str(place / "run")


@pytest.mark.parametrize(
    ("tasks", "complaint"),
    [
        ("stdlb", "did you mean 'stdlib'"),
        ("gsm8k", "or gsm8k=FILE.jsonl in eval.tasks"),
        ("mine=nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_tasks_whose_prompts_cannot_be_had_are_refused_before_training(
    place: Path, monkeypatch: pytest.MonkeyPatch, tasks: str, complaint: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place / "no-data-sets")
    train = ("train", "--config", place / "run.json", "--out", place / "new", "--set", f"eval.tasks={tasks}")
    refused = run(*train)
    assert refused.code == 2
    assert complaint in refused.err
    assert not (place / "new").exists()


def test_without_an_evaluation_its_tasks_do_not_matter(place: Path) -> None:
    options = ("--steps", "1", "--set", "eval.tasks=gsm8k", "--no-eval")
    assert run("train", "--config", place / "run.json", "--out", place / "bare", *options).code == 0
    shutil.rmtree(place / "bare")


def test_a_disk_that_is_full_after_training_is_one_line_and_a_failed_run(
    trained: Ran, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runs, "write_json", fail)
    full = run("train", "--resume", "--out", place / "run", "-q")
    assert (full.code, full.out) == (1, "")
    (line,) = full.err.splitlines()
    assert line.startswith(f"error: {place / 'run' / 'eval.json'} cannot be written")
    assert line.endswith(f"deepspec eval {place / 'run'}")


def test_eval_json_has_the_keys_that_others_read(trained: Ran, place: Path) -> None:
    found = run("eval", place / "run", "--temperature", "0", "--num-prompts", "2", "--json")
    assert found.code == 0, found.err
    assert set(found.json) >= EVAL_KEYS
    assert found.json["temperature"] == 0
    assert found.json["num_prompts"] == 2
    assert len(found.json["conditional_acceptance"]) == found.json["draft_length"] == 3
    assert set(found.json["tasks"]) == {"mine"}


def test_a_task_file_alone_replaces_the_runs_tasks(trained: Ran, place: Path) -> None:
    task = f"other={place / 'prompts.jsonl'}"
    assert set(run("eval", place / "run", "--task-file", task, "--json").json["tasks"]) == {"other"}


def test_generating_twice_with_one_seed_gives_one_text(trained: Ran, place: Path) -> None:
    arguments = ("generate", place / "run", "--prompt", "the cat", "--seed", "5", "--max-tokens", "16")
    first, second = run(*arguments, "--json"), run(*arguments)
    assert first.json["num_tokens"] == 16
    assert first.json["num_rounds"] > 0
    assert second.out == f"{first.json['text']}\n"


def test_generating_plainly_gains_one_token_a_round(trained: Ran, place: Path) -> None:
    plain = run(
        "generate", place / "run", "--prompt", "the cat", "--plain", "--max-tokens", "5", "--json"
    ).json
    assert (plain["num_tokens"], plain["accepted_length"]) == (5, 1.0)


def test_a_prompt_is_read_from_a_file_or_standard_input(
    trained: Ran, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "prompt.txt").write_text("the caté")
    arguments = ("generate", place / "run", "--seed", "5", "--max-tokens", "6", "--json")
    from_file = run(*arguments, "--file", place / "prompt.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the caté".encode())))
    assert run(*arguments).json["text"] == from_file.json["text"]
    assert from_file.json["prompt"] == "the caté"


def test_show_rounds_ends_with_the_accepted_length_and_the_speed(trained: Ran, place: Path) -> None:
    shown = run("generate", place / "run", "--prompt", "the cat", "--show-rounds", "--max-tokens", "8")
    assert shown.code == 0, shown.err
    assert shown.out.splitlines()[-1].startswith("τ ")
    assert shown.out.splitlines()[-1].endswith("tokens/s")


def test_the_python_door_streams_the_same_text(trained: Ran, place: Path) -> None:
    import deepspec

    params = deepspec.SamplingParams(seed=5, max_tokens=16)
    pieces = list(deepspec.generate(place / "run", "the cat", params=params))
    command = run(
        "generate", place / "run", "--prompt", "the cat", "--seed", "5", "--max-tokens", "16", "--json"
    )
    assert "".join(pieces) == command.json["text"]
    assert len(pieces) > 1
