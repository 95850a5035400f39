"""``deepspec compare`` on two runs of a tiny target: JSON, tables, files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepspec.evaluate import comparison
from deepspec.train import train
from tests.command_line import run
from tests.tiny_runs import config, save_prompts, save_target, save_text, strategy


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs ``one`` and ``two`` of a target, ``stranger`` of another, and prompts."""
    folder = tmp_path_factory.mktemp("compare")
    text = save_text(folder / "text.jsonl")
    targets = [save_target(folder / f"target-{seed}", seed=seed) for seed in (0, 1)]
    for name, target, kind in (("one", 0, "dspark"), ("two", 0, "dflash"), ("stranger", 1, "dflash")):
        once = {"num_steps": 1, "checkpoint_every": 1}
        settings = config(targets[target], text, chosen=strategy(kind), train=once)
        train(settings.strategy, config=settings, out=folder / name)
    save_prompts(folder / "prompts.jsonl", [f"document {n}: the cat" for n in range(3)])
    return folder


@pytest.fixture(autouse=True)
def _few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BATCH", 2), ("_NUM_ALONE", 1), ("_NUM_BLOCKS", 1)):
        monkeypatch.setattr(comparison, name, value)


def test_two_runs_are_one_json_document_and_files_that_hold_the_same(place: Path, tmp_path: Path) -> None:
    shared = ["--task-file", f"mine={place / 'prompts.jsonl'}", "--max-tokens", "6", "--temperature", "0"]
    files = ["--html", tmp_path / "page.html", "--out", tmp_path / "new" / "folder"]
    ran = run("compare", place / "one", place / "two", *shared, *files, "--json", "-q", "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")
    assert [one["name"] for one in ran.json["runs"]] == ["one", "two"]
    assert (ran.json["temperature"], ran.json["max_tokens"], ran.json["num_prompts"]) == (0, 6, 3)
    assert all(one["train_flops"] > one["train_flops_target"] > 0 for one in ran.json["runs"])
    folder = tmp_path / "new" / "folder"
    assert json.loads((folder / "comparison.json").read_text()) == ran.json
    assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "comparison.html").read_text() == (tmp_path / "page.html").read_text()


def test_without_json_there_are_tables(place: Path) -> None:
    ran = run("compare", place / "two", "--task-file", f"mine={place / 'prompts.jsonl'}", "--max-tokens", "6")
    assert ran.code == 0
    for words in ("accepted length τ", "T_verify ms", "batch 16", "FLOPs", "two"):
        assert words in ran.out
    assert "decoding 3 prompts with two" in ran.err


@pytest.mark.parametrize(
    ("names", "options", "complaint"),
    [
        (["one", "stranger"], [], "the runs' targets differ"),
        (["one", "one"], [], "is given twice"),
        (["one", "nowhere"], [], "nowhere is no run folder"),
        (["one"], ["--html", "absent/page.html"], "give a file in a folder that exists"),
        (["one"], ["--out", __file__], "is a file; give a folder"),
        (["one"], ["--temperature", "-1"], "temperature"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_loaded(
    place: Path, names: list[str], options: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepspec.target.load_target", lambda *_, **__: pytest.fail("loaded"))
    ran = run("compare", *(place / name for name in names), *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert complaint in ran.err


def test_runs_of_one_target_share_it(place: Path) -> None:
    from deepspec.runs import load_all

    one, two = load_all([place / "one", place / "two"], device="cpu")
    assert one.target is two.target
    assert one.parts is not two.parts
