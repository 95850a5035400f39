"""Shows long commands as they go: a bar on a terminal, plain lines elsewhere, nothing with ``-q``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from types import TracebackType

    from deepspec.regenerate import RegenerationReport
    from deepspec.types import StepRecord

#: Seconds between plain lines of what has no steps to count.
_TELL_EVERY_S = 10.0


def describe(record: StepRecord, *, length: str = "expected accepted length") -> str:
    """One step in words: loss, expected accepted length (under the name ``length``), speed, time left."""
    return (
        f"loss {record.loss:.4f}  {length} {record.expected_accepted_length:.3f}  "
        f"{record.tokens_per_s:,.0f} tokens/s  {clock(record.seconds_left)} left"
    )


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class _Shown:
    """A bar that is on the terminal inside a ``with``, where there is one."""

    _bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class TrainingProgress(_Shown):
    """An observer of StepRecords, used as a context manager around the training.

    Args:
        console: where to show it.
        every: steps between plain lines; a bar moves at every record.
    """

    def __init__(self, console: Console, *, every: int = 10) -> None:
        self._console = console
        self._every = every
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=8),
                TextColumn("{task.description}"),
                console=console,
            )

    def __call__(self, record: StepRecord) -> None:
        """Take in one step."""
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task("", total=record.num_steps)
            self._bar.update(
                self._bar.tasks[0].id,
                completed=record.step,
                description=describe(record, length="expected τ"),
            )
        elif record.step % self._every == 0 or record.step in (1, record.num_steps):
            width = len(str(record.num_steps))
            step = f"step {record.step:>{width}}/{record.num_steps}  {describe(record)}"
            self._console.print(step, markup=False, soft_wrap=True)


def describe_samples(report: RegenerationReport) -> str:
    """How far regeneration is, in words."""
    rate = report.num_tokens / report.seconds if report.seconds else 0.0
    left_out = sum(report.left_out.values()) - report.num_failed
    counts = {"written": report.num_written, "left out": left_out, "failed": report.num_failed}
    told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    before = f", done before {report.num_before:,}" if report.num_before else ""
    return f"samples: {told}{before}; {rate:,.0f} tokens/s"


class RegenerationProgress(_Shown):
    """An observer of regeneration's reports, used as a context manager around it; silent when ``quiet``."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = None if quiet else console
        self._told_s = 0.0
        if not quiet and console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True)
            self._task = self._bar.add_task("")

    def __call__(self, report: RegenerationReport) -> None:
        """Take in what has been done so far."""
        if self._bar is not None:
            self._bar.update(self._task, description=describe_samples(report))
        elif self._console is not None and report.seconds - self._told_s >= _TELL_EVERY_S:
            self._told_s = report.seconds
            self._console.print(describe_samples(report), markup=False, soft_wrap=True)
