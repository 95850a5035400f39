"""``regenerate``: the rows of a source, what the target answers, and the file that it goes to.

Rows are read one by one and only the numbers of those done are kept, a bit each, so memory does not grow with
the data. Whatever ends the process, the same call goes on with the samples that are not in the file yet.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from deepspec.data.examples import PROVENANCE
from deepspec.data.forms import Columns
from deepspec.data.rows import example_files
from deepspec.data.sources import file_sources, read_sources, source_fingerprint
from deepspec.environment import versions
from deepspec.errors import ConfigError, DataError, ServerError
from deepspec.regenerate.journal import Journal
from deepspec.regenerate.numbers import NumberSet
from deepspec.regenerate.samples import LeftOut, LeftOutKind, Outcome, Sample, Writer, Written
from deepspec.sampling import SamplingParams

#: So many samples that fail one after the other, for each that is asked for at once, are enough to stop at.
_HOPELESS = 2
_FEWEST_HOPELESS = 16


@dataclass(frozen=True)
class Regeneration:
    """What to make of what.

    Attributes:
        sources: files, folders, globs, data sets. subset: the data sets' configuration.
        out: the file, JSONL.
        limit: rows to read at most. text_characters: of running text, that are given as the prompt.
        drop_cut: whether samples are left out whose last turn was cut off.
    """

    sources: tuple[str, ...]
    out: Path
    columns: Columns = field(default_factory=lambda: Columns({}))
    subset: str | None = None
    limit: int | None = None
    text_characters: int = 200
    drop_cut: bool = False


@dataclass(frozen=True)
class RegenerationReport:
    """What a call has done.

    Attributes:
        num_before: samples that were done already. num_written: those it wrote, of which ``num_cut`` end in
            a turn that was cut off. num_tokens: in their turns, as far as it is known.
        left_out: how many gave no text, by kind. reasons: of the first of each kind.
        num_unusable_rows: rows that ask nothing; ``problem`` says why of the first.
    """

    file: str
    num_before: int = 0
    num_written: int = 0
    num_cut: int = 0
    num_tokens: int = 0
    left_out: Mapping[LeftOutKind, int] = field(default_factory=dict)
    reasons: Mapping[LeftOutKind, str] = field(default_factory=dict)
    num_unusable_rows: int = 0
    problem: str | None = None
    seconds: float = 0.0

    @property
    def num_failed(self) -> int:
        """Samples to try again."""
        return self.left_out.get("failed", 0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"schema": 1, **asdict(self), "num_failed": self.num_failed}


Observer = Callable[[RegenerationReport], None]


def regenerate(plan: Regeneration, writer: Writer, *, observer: Observer | None = None) -> RegenerationReport:
    """Have the target answer what a source asks and append it to ``plan.out``; goes on with what is there.

    Args:
        observer: called with what has been done so far, after each sample.

    Raises:
        ConfigError, DataError: settings, a source or a file that do not fit.
        ServerError: sample after sample failed. ResourceError: memory or disk ran out.
        KeyboardInterrupt: SIGINT or SIGTERM; its text says how to go on.
    """
    with (
        _terminated_as_interrupted(),
        Journal(plan.out, _identity(plan, writer), _details(plan, writer)) as journal,
    ):
        _check_apart(plan)
        session = _Session(plan, writer, journal, observer)
        try:
            return session.run()
        except KeyboardInterrupt:
            done = f"interrupted; samples done: {len(journal.done):,}"
            raise KeyboardInterrupt(f"{done}; the same command goes on with {plan.out}") from None


def _identity(plan: Regeneration, writer: Writer) -> dict[str, Any]:
    """What must be the same for a file to be gone on with."""
    return {
        "source": {
            "fingerprint": source_fingerprint(plan.sources, subset=plan.subset),
            "renamed": dict(plan.columns.renamed),
            "chat": plan.columns.as_chat,
            "text_characters": plan.text_characters,
        },
        "settings": {**_settings(writer.params), "drop_cut": plan.drop_cut},
        "writer": writer.identity(),
    }


def _settings(params: SamplingParams) -> dict[str, Any]:
    names = ("temperature", "top_p", "top_k", "min_p", "max_tokens")
    return {**{name: getattr(params, name) for name in names}, "seed": params.seed or 0}


def _details(plan: Regeneration, writer: Writer) -> dict[str, Any]:
    return {"sources": list(plan.sources), "subset": plan.subset, **writer.details(), "versions": versions()}


def _check_apart(plan: Regeneration) -> None:
    """Refuse a file that would be read as it is written."""
    files = file_sources(plan.sources)
    if files and plan.out.resolve() in {file.resolve() for file in example_files(files)}:
        raise ConfigError(f"{plan.out} is among the files to read; choose another --out")


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Session:
    """The samples' way through."""

    def __init__(
        self, plan: Regeneration, writer: Writer, journal: Journal, observer: Observer | None
    ) -> None:
        self._plan, self._writer, self._journal, self._observer = plan, writer, journal, observer
        self._started = time.monotonic()
        self._num_rows = self._failed_in_a_row = 0
        self._settings = {**_settings(writer.params), **writer.details()}
        self.report = RegenerationReport(str(plan.out), num_before=len(journal.done))

    def run(self) -> RegenerationReport:
        with closing(self._writer.write(self._samples(self._journal.done))) as outcomes:
            for outcome in outcomes:
                self._take(outcome)
                self._tell()
        if self.report.num_unusable_rows == self._num_rows:
            raise DataError(f"none of {self._num_rows} rows asks anything; the first: {self.report.problem}")
        self._tell()
        return self.report

    def _samples(self, done: NumberSet) -> Iterator[Sample]:
        """Those not done yet, in order."""
        plan = self._plan
        rows = islice(read_sources(plan.sources, subset=plan.subset), plan.limit)
        for number, (source, row) in enumerate(rows, start=1):
            self._num_rows = number
            if number in done:
                continue
            try:
                prompt = plan.columns.prompt(row, source, text_characters=plan.text_characters)
            except DataError as error:
                count, problem = self.report.num_unusable_rows, self.report.problem
                self.report = replace(self.report, num_unusable_rows=count + 1, problem=problem or str(error))
                continue
            yield Sample(number, prompt)

    def _take(self, outcome: Outcome) -> None:
        if isinstance(outcome, Written) and outcome.finish_reason == "length" and self._plan.drop_cut:
            outcome = LeftOut(outcome.sample, "cut", "its last turn was cut off")
        if isinstance(outcome, Written):
            self._failed_in_a_row = 0
            self._journal.add(outcome.sample.number, {**outcome.row, PROVENANCE: self._provenance(outcome)})
            self.report = replace(
                self.report,
                num_written=self.report.num_written + 1,
                num_cut=self.report.num_cut + (outcome.finish_reason == "length"),
                num_tokens=self.report.num_tokens + (outcome.num_tokens or 0),
            )
        else:
            self._leave_out(outcome)

    def _provenance(self, written: Written) -> dict[str, Any]:
        return {
            "number": written.sample.number,
            "source": written.sample.prompt.source,
            **self._settings,
            "finish_reason": written.finish_reason,
            "num_tokens": written.num_tokens,
            "turns": list(written.turns),
        }

    def _leave_out(self, outcome: LeftOut) -> None:
        kind, reason = outcome.kind, outcome.reason
        line = {"source": outcome.sample.prompt.source, "kind": kind, "reason": reason}
        self._journal.leave_out(outcome.sample.number, line)
        self.report = replace(
            self.report,
            left_out={**self.report.left_out, kind: self.report.left_out.get(kind, 0) + 1},
            reasons={kind: reason, **self.report.reasons},
        )
        self._failed_in_a_row = self._failed_in_a_row + 1 if kind == "failed" else 0
        if self._failed_in_a_row >= max(_FEWEST_HOPELESS, _HOPELESS * self._writer.concurrency):
            raise ServerError(
                f"{self._failed_in_a_row} samples failed one after the other, the last: {reason}; once that "
                "is mended, the same command goes on"
            )

    def _tell(self) -> None:
        self.report = replace(self.report, seconds=time.monotonic() - self._started)
        if self._observer is not None:
            self._observer(self.report)
