"""Preparing data: checked, split by prompt, without repeats, written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepspec.data import prepare as prepare_module
from deepspec.data.forms import Columns
from deepspec.data.lengths import LengthCounter
from deepspec.data.prepare import Preparation, prepare_data
from deepspec.data.prepared import split_files
from deepspec.data.rows import read_examples
from deepspec.data.writers import SeenPrompts, prompt_hash
from deepspec.errors import ConfigError, DataError, ResourceError
from tests import tiny_tokenizer

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def plan_for(source: Path, out: Path, **changes) -> Preparation:
    values = {"sources": (str(source),), "out": out, "target": "tiny", "columns": Columns({})}
    return Preparation(**{**values, **changes})


def texts(folder: Path, part: str) -> list[str]:
    return [example.text for example in read_examples(folder / f"{part}.jsonl")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", *({"text": f"text {n}"} for n in range(200)))


def test_each_form_is_written_as_it_will_be_read(tmp_path):
    rows = [
        {"turns": ["a", "b"], "id": 1},
        {"prompt": "p", "response": "r", "complete": False},
        {"text": "t", "messages": TALK, "extra": True},
        {"text": "t"},
    ]
    for file_format in ("jsonl", "parquet"):
        plan = plan_for(write(tmp_path / "a.jsonl", *rows), tmp_path / file_format, held_out_fraction=0)
        report = prepare_data(
            Preparation(**{**vars(plan), "file_format": file_format}), tiny_tokenizer.tokenizer()
        )
        assert report.ignored_columns == ("extra", "id", "text")
        assert (report.num_rows, report.num_unusable, report.held_out) == (4, 0, None)
        found = [vars(example) for example in read_examples(plan.out)]
        assert [set(one) - {"source"} for one in found] == [
            {"messages", "tools", "is_complete"},
            {"prompt", "response", "is_complete"},
            {"messages", "tools", "is_complete"},
            {"text", "is_complete"},
        ]
        assert (found[1]["is_complete"], found[3]["is_complete"]) == (False, True)
        assert sorted(path.name for path in plan.out.iterdir()) == ["data.json", f"train.{file_format}"]


def test_the_split_is_by_prompt_and_seed_and_the_folder_tells_training(source, tmp_path):
    tokenizer = tiny_tokenizer.tokenizer()
    report = prepare_data(plan_for(source, tmp_path / "a", held_out_fraction=0.2), tokenizer)
    prepare_data(plan_for(source, tmp_path / "b", held_out_fraction=0.2), tokenizer)
    prepare_data(plan_for(source, tmp_path / "c", held_out_fraction=0.2, seed=1), tokenizer)
    train, held_out = texts(tmp_path / "a", "train"), texts(tmp_path / "a", "held-out")
    assert sorted(train + held_out) == sorted(f"text {n}" for n in range(200))
    assert 20 < len(held_out) < 60
    assert (report.train.num_examples, report.held_out.num_examples) == (len(train), len(held_out))
    assert held_out == texts(tmp_path / "b", "held-out") != texts(tmp_path / "c", "held-out")
    files = ([tmp_path / "a" / "train.jsonl"], [tmp_path / "a" / "held-out.jsonl"])
    assert split_files([tmp_path / "a"]) == files
    assert split_files([str(tmp_path / "a" / "*.jsonl"), source]) == ([*files[0], source], files[1])
    with pytest.raises(DataError, match=r"held-out\.jsonl is held-out text alone; give its folder"):
        split_files(files[1])


def test_one_prompt_is_held_out_of_few_and_one_alone_cannot_be_split(tmp_path):
    tokenizer = tiny_tokenizer.tokenizer()
    few = write(tmp_path / "few.jsonl", *({"text": f"{n}"} for n in range(5)))
    report = prepare_data(plan_for(few, tmp_path / "few"), tokenizer)
    assert (report.train.num_examples, report.held_out.num_examples) == (4, 1)
    one = write(tmp_path / "one.jsonl", {"text": "a"})
    with pytest.raises(DataError, match="all 1 examples would be held out, .* or --held-out 0"):
        prepare_data(plan_for(one, tmp_path / "one"), tokenizer)
    assert not (tmp_path / "one").exists()


def test_repeated_prompts_are_left_out_or_stay_on_one_side(tmp_path):
    rows = [{"prompt": f"{n % 10} ?" + " " * (n // 10), "response": f"{n}"} for n in range(30)]
    file = write(tmp_path / "a.jsonl", *rows)
    tokenizer = tiny_tokenizer.tokenizer()
    report = prepare_data(plan_for(file, tmp_path / "a", held_out_fraction=0.3), tokenizer)
    assert report.num_duplicates == 20
    kept = plan_for(file, tmp_path / "b", held_out_fraction=0.01, keep_duplicates=True)
    report = prepare_data(kept, tokenizer)
    assert (report.num_duplicates, report.train.num_examples, report.held_out.num_examples) == (0, 27, 3)
    sides = [
        {example.prompt.strip() for example in read_examples(tmp_path / "b" / f"{part}.jsonl")}
        for part in ("train", "held-out")
    ]
    assert sides[0].isdisjoint(sides[1])


def test_rows_that_cannot_be_used_are_counted_and_named_or_an_error(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        {"text": "fine"},
        {"text": ""},
        {"text": ""},
        {"id": 3},
        {"text": "x" * 50},
        {"messages": TALK},
    )
    tokenizer = tiny_tokenizer.tokenizer(chat_template=None)
    report = prepare_data(plan_for(file, tmp_path / "a", max_tokens=20, held_out_fraction=0), tokenizer)
    assert (report.num_unusable, report.train.num_examples) == (5, 1)
    assert [problem.removeprefix(f"{file}:")[:12] for problem in report.problems] == [
        '2: "text" is',
        "4: a row nee",
        "5: longer th",
        '6: "messages',
    ]
    with pytest.raises(DataError, match=r'a\.jsonl:2: "text" is empty'):
        prepare_data(plan_for(file, tmp_path / "b", is_strict=True), tokenizer)
    with pytest.raises(DataError, match="none of 1 rows can be used; the first: .*chat template"):
        prepare_data(plan_for(write(tmp_path / "c.jsonl", {"messages": TALK}), tmp_path / "c"), tokenizer)


def test_masks_that_do_not_fit_the_template_are_left_out(tmp_path):
    template = tiny_tokenizer.MARKED_TEMPLATE.replace("[{{ m['role'] }}]{% if", "{% if").replace(
        "{% generation %}", "{% generation %}[assistant]"
    )
    file = write(tmp_path / "a.jsonl", {"messages": TALK}, {"text": "a"})
    plan = plan_for(file, tmp_path / "a", held_out_fraction=0)
    report = prepare_data(plan, tiny_tokenizer.tokenizer(chat_template=template))
    assert report.num_unusable == 1
    assert "the loss mask does not fit the chat template: message 2: " in report.problems[0]


def test_hopeless_data_is_given_up_early(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_module, "_HOPELESS_ROWS", 3)
    file = write(tmp_path / "a.jsonl", *({"id": n} for n in range(9)))
    with pytest.raises(DataError, match=r"none of the first 3 rows can be used; the first: .*a\.jsonl:1: "):
        prepare_data(plan_for(file, tmp_path / "a"), tiny_tokenizer.tokenizer())


def test_the_report_counts_lengths_and_says_how_it_was_made(tmp_path):
    rows = [{"prompt": "p" * 10, "response": "r" * n} for n in range(1, 101)]
    plan = plan_for(
        write(tmp_path / "a.jsonl", *rows),
        tmp_path / "a",
        held_out_fraction=0,
        keep_duplicates=True,
        sequence_length=64,
    )
    prepare_data(plan, tiny_tokenizer.tokenizer())
    written = json.loads((plan.out / "data.json").read_text())
    assert written["train"]["tokens"] == {
        "total": 100 * 11 + 5050,
        "mean": 61.5,
        "shortest": 12,
        "p50": 61,
        "p90": 101,
        "p99": 110,
        "longest": 111,
    }
    assert written["train"]["supervised"]["total"] == 5150
    assert (written["train"]["num_cut"], written["settings"]["seed"]) == (47, 0)
    assert LengthCounter().lengths() is None


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_fails_leaves_nothing_behind(source, tmp_path, monkeypatch, failure):
    def fail(*_arguments):
        raise failure

    monkeypatch.setattr(SeenPrompts, "add", fail)
    error = ResourceError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(error):
        prepare_data(plan_for(source, tmp_path / "a"), tiny_tokenizer.tokenizer())
    assert list(tmp_path.iterdir()) == [source]


def test_what_a_killed_process_left_is_removed_and_what_a_running_one_makes_is_not(source, tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, made = tmp_path / f".a.{gone.pid}", tmp_path / f".a.{os.getppid()}"
    for folder in (left, made, tmp_path / ".a.notes"):
        folder.mkdir()
    prepare_data(plan_for(source, tmp_path / "a"), tiny_tokenizer.tokenizer())
    assert {path.name for path in tmp_path.iterdir()} == {".a.notes", "a", "a.jsonl", made.name}


def test_a_folder_that_holds_something_is_refused_first(tmp_path):
    write(tmp_path / "kept.jsonl", {"text": "a"})
    with pytest.raises(ConfigError, match="is not an empty folder; choose another --out"):
        prepare_data(plan_for(tmp_path / "absent.jsonl", tmp_path), tiny_tokenizer.tokenizer())
    with pytest.raises(ConfigError, match="--held-out is 1; allowed is 0"):
        prepare_data(plan_for(tmp_path, tmp_path / "a", held_out_fraction=1.0), tiny_tokenizer.tokenizer())


def test_parquet_does_not_hold_calls_and_says_so(tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
    file = write(tmp_path / "a.jsonl", {"messages": [TALK[0], call]})
    template = tiny_tokenizer.PLAIN_TEMPLATE.replace(
        "{{ m['content'] }}", "{{ m['content'] or m.tool_calls }}"
    )
    plan = plan_for(file, tmp_path / "a", file_format="parquet", held_out_fraction=0)
    with pytest.raises(DataError, match="Parquet does not hold them; write JSONL"):
        prepare_data(plan, tiny_tokenizer.tokenizer(chat_template=template))


def test_prompts_are_the_same_up_to_blanks():
    assert prompt_hash("a  b\n") == prompt_hash("a b") != prompt_hash("ab")


MEASURE = """
import sys
from pathlib import Path
from deepspec.data.forms import Columns
from deepspec.data.prepare import Preparation, prepare_data
from tests.tiny_tokenizer import tokenizer

def peak(source, out):
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: importing takes more
    prepare_data(Preparation((source,), Path(out), "tiny", Columns({})), tokenizer())
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024

root = sys.argv[1]
peak(f"{root}/small.jsonl", f"{root}/warm-up")
small = peak(f"{root}/small.jsonl", f"{root}/a")
print(peak(f"{root}/large.jsonl", f"{root}/b") - small)
"""


def test_memory_does_not_grow_with_the_data(tmp_path):
    """Peak of 1 and 21 MB in one process; that the larger file is held, were it once, would be 20 MB more."""
    for name, number in (("small", 100), ("large", 2_100)):
        filler = "x" * 9_000  # in a column that is not read, so that the tokenizer is no part of the time
        rows = ({"text": f"text {n} " * 20, "filler": filler} for n in range(number))
        write(tmp_path / f"{name}.jsonl", *rows)
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ran.stdout) <= 8  # MB: what allocators keep
