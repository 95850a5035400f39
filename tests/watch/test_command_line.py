"""What the command line shows is a file under ``snapshots/``: each help page, each kind of bad input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import pytest
import typer

from deepspec import cli
from tests.command_line import run
from tests.watch.snapshot import SNAPSHOTS, check_snapshot


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command and group, as typed."""
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = list(commands(typer.main.get_command(cli.app)))
BAD_INPUT = [
    ["trian"],
    ["train", "--stepz", "3"],
    ["train", "--steps", "three"],
    ["train"],
    ["train", "--strategy", "toy-strategy"],
    ["train", "--strategy", "dsparc"],
    ["train", "--strategy", "dflash", "--set", "head.type=markow"],
    ["train", "--strategy", "dspark", "--set", "head.rnk=3"],
    ["train", "--strategy", "dspark", "--set", "objective=papr"],
    ["train", "--strategy", "dspark", "--set", "train.num_step=3"],
    ["train", "--strategy", "dspark", "--set", "train.tracker=wandb"],
    ["train", "--strategy", "dspark", "--steps", "0"],
    ["train", "--strategy", "dspark", "--config", "absent.toml"],
    ["train", "--strategy", "dspark", "--set", "objective.terms.l1=-0.5"],
    ["train", "--strategy", "dspark", "--set", "head.confidence=row_max"],
    ["train", "--strategy", "dspark", "--set", "draft_length=300"],
    ["train", "--strategy", "dflash", "--set", "policy.type=threshold"],
    ["train", "--strategy", "dflash", "--set", "drafter.target_layers=[]"],
    ["train", "--strategy", "dflash", "--set", "drafter.target_layers=[3, 99]"],
    ["train", "--strategy", "dflash", "--set", "drafter.target_layers=[3, 3]"],
    ["train", "--strategy", "dflash", "--set", "drafter={num_target_layers: 2, target_layers: [3]}"],
    ["train", "--strategy", "eagle3", "--set", "drafter.num_heads=5"],
    ["train", "--strategy", "eagle3", "--set", "drafter.draft_vocab_size=99999"],
    ["train", "--strategy", "mtp", "--set", "drafter.modules=3"],
    ["train", "--strategy", "mtp", "--set", "drafter.rotary_dim=64"],
    ["train", "--strategy", "mtp", "--set", "drafter.native_weights=nowhere"],
    ["train", "--strategy", "draft_model", "--set", "drafter.model=nowhere"],
    ["train", "--resume"],
    ["train", "--resume", "--out", "nowhere"],
    ["train", "--resume", "--out", "nowhere", "--strategy", "dspark", "--dry-run"],
    ["train", "--init-from", "nowhere"],
    ["train", "--init-from", "demo", "--set", "train.init_from_target=true"],
    ["train", "--init-from", "demo", "--strategy", "dflash"],
    ["train", "--init-from", "demo", "--set", "head.rank=4"],
    ["train", "--init-from", "demo", "--resume"],
    ["train", "--strategy", "dspark", "--set", "features.source=cach"],
    ["train", "--strategy", "dspark", "--set", "features.source=cached"],
    ["train", "--strategy", "dspark", "--set", "features.source=cached", "--set", "features.folder=absent"],
    ["data", "prepare", "absent.jsonl"],
    ["data", "prepare", "absent.jsonl", "--out", "new"],
    ["data", "prepare", "owner/absent:test", "--out", "new"],
    ["data", "prepare", "absent.jsonl", "--out", "new", "--held-out", "1"],
    ["data", "prepare", "absent.jsonl", "--out", "new", "--format", "csv"],
    ["data", "prepare", "absent.jsonl", "--out", "new", "--rename", "question"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--model", "m"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--server", "localhost:8000"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--server", "http://a", "--draft", "demo"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--target", "demo", "--draft", "demo"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--draft", "nowhere"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--max-positions", "1000"],
    ["data", "regenerate", "absent.jsonl", "--out", "new.jsonl", "--top-p", "0"],
    ["data", "regenerate", "absent.jsonl", "--out", ".", "--max-tokens", "4"],
    ["data", "show"],
    ["data", "show", "absent.jsonl"],
    ["data", "show", "owner/absent"],
    ["features"],
    ["features", "--strategy", "dspark"],
    ["features", "--strategy", "dspark", "--folder", "f", "--bits", "5"],
    ["features", "--strategy", "dspark", "--folder", "f", "--part", "3/2"],
    ["features", "--strategy", "dspark", "--folder", "f", "--target", "/absent"],
    ["features", "--strategy", "dspark", "--folder", "f", "--set", "data.sequence_length=1000"],
    ["eval"],
    ["eval", "nowhere"],
    ["eval", "demo", "--task-file", "mine.jsonl"],
    ["eval", "demo", "--strategy", "dflash"],
    ["eval", "demo", "--set", "draft_length=3"],
    ["eval", "--strategy", "dspark"],
    ["eval", "--strategy", "dspark", "--set", "head.rnk=3"],
    ["generate", "--prompt", "a", "--file", "b"],
    ["generate", "--file", "absent.txt"],
    ["generate", "--prompt", ""],
    ["generate", "nowhere", "--prompt", "a"],
    ["generate", "demo", "--prompt", "a", "--target", "demo"],
    ["generate", "--prompt", "a", "--strategy", "dflash"],
    ["generate", "--prompt", "a", "--top-p", "0"],
    ["runs", "nowhere"],
    ["profile"],
    ["profile", "demo", "--target", "demo"],
    ["profile", "demo", "--draft-length", "3"],
    ["profile", "--target", "demo", "--repeats", "1"],
    ["profile", "--target", "demo", "--context", "600"],
    ["simulate", "--policy", "frugl"],
    ["simulate", "--policy", "fixed:lenght=1"],
    ["simulate", "--concurrency", "-3"],
    ["simulate", "--concurrency", "few"],
    ["simulate", "--hardware", "h20"],
    ["simulate", "--tile", "0"],
    ["simulate", "--workload", "maths=1"],
    ["simulate", "--arrivals", "poisson:-1"],
    ["simulate", "--arrivals", "absent.json"],
    ["simulate", "--curve", "absent.json"],
    ["simulate", "--trace", "absent.parquet"],
    ["simulate", "--steps", "1"],
    ["check"],
    ["check", "policy:markov"],
    ["check", "ce"],
    ["check", "markov", "--set", "rank=3"],
    ["check", "mtp", "--set", "head.type=rn"],
    ["config", "show", "--set", "sed=3"],
    ["plugins", "nwe", "two-back"],
    ["plugins", "new", "Two_Back"],
    ["plugins", "new", "markov"],
]


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "deepspec")
def test_help_fits_80_columns_and_describes_every_option(words: tuple[str, ...]) -> None:
    ran = run(*words, "--help")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert max(map(len, lines)) <= 80
    for line, following in pairwise(lines):
        if line.startswith(("│ --", "│ *")):
            cells = [line.strip("│ ").split("  ")[-1], following.strip("│ ")]
            assert any(" " in cell for cell in cells), f"{line!r} says nothing"
    check_snapshot(ran.out, SNAPSHOTS / f"help-{'-'.join(words) or 'deepspec'}.txt")


def test_bad_input_is_one_line_and_exit_code_2_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = []
    for words in BAD_INPUT:
        ran = run(*words)
        shown += [f"$ deepspec {' '.join(word or repr(word) for word in words)}\n", ran.err]
        assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), words
        assert ran.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    check_snapshot("".join(shown), SNAPSHOTS / "bad-input.txt")
