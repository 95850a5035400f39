"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from deepspec.cli.progress import TrainingProgress, clock
from deepspec.types import StepRecord


def record(step: int, num_steps: int = 25) -> StepRecord:
    return StepRecord(
        step=step,
        num_steps=num_steps,
        loss=1.25,
        expected_accepted_length=2.5,
        tokens_per_s=1234.4,
        seconds_left=75.2,
    )


def shown(console: Console, steps: range) -> str:
    with TrainingProgress(console, every=10) as progress:
        for step in steps:
            progress(record(step))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_come_at_the_first_each_tenth_and_the_last_step() -> None:
    lines = shown(Console(file=io.StringIO(), width=160), range(1, 26)).splitlines()
    assert [line.split()[1] for line in lines] == ["1/25", "10/25", "20/25", "25/25"]
    assert lines[0] == ("step  1/25  loss 1.2500  expected accepted length 2.500  1,234 tokens/s  1:15 left")
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar_that_ends_at_the_last_step() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    text = shown(console, range(1, 26))
    assert "\x1b" in text
    assert "25/25" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (-3, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_time_left_reads_as_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
