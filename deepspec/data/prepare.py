"""``deepspec data prepare``: rows of any source to a folder of checked examples that training takes.

Each row is read, made an example, tokenised as training will, held to the chat template (``check.py``),
looked up among the prompts that came before, and written; nothing but counts is kept, so memory does not
grow with the data. The folder holds ``train`` and ``held-out`` files and the report, ``data.json``; it is
made beside its place and moved there whole. Which side of the split an example is on depends on its prompt
and the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepspec.data.check import mask_problem
from deepspec.data.documents import documents
from deepspec.data.examples import ChatExample, Example
from deepspec.data.forms import Columns, prompt_of
from deepspec.data.lengths import LengthCounter
from deepspec.data.prepared import HELD_OUT, REPORT, TRAIN
from deepspec.data.report import DataReport, PartReport, report_json
from deepspec.data.sources import read_sources
from deepspec.data.writers import ExampleWriter, JsonlWriter, ParquetWriter, SeenPrompts, prompt_hash
from deepspec.environment import versions
from deepspec.errors import ConfigError, DataError
from deepspec.paths import remove_left, sync
from deepspec.resources import writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_WRITERS: dict[str, Callable[[Path], ExampleWriter]] = {"jsonl": JsonlWriter, "parquet": ParquetWriter}
_MOST_PROBLEMS = 5
#: So many rows of which none can be used are enough to stop at.
_HOPELESS_ROWS = 1_000
_LOG_EVERY = 20_000


@dataclass(frozen=True)
class Preparation:
    """What to make of what.

    Attributes:
        sources: files, folders, globs, data sets. subset: the data sets' configuration.
        target: the name that the tokenizer was found by, for the report.
        held_out_fraction: share of the prompts to validate on, 0 to leave the split to training.
        sequence_length: of the training rows that are meant, to say how many documents they cut.
        max_tokens: longer examples are left out.
        keep_duplicates: whether examples whose prompt came before are kept.
        is_strict: whether the first row that cannot be used is an error.
    """

    sources: tuple[str, ...]
    out: Path
    target: str
    columns: Columns
    subset: str | None = None
    file_format: Literal["jsonl", "parquet"] = "jsonl"
    held_out_fraction: float = 0.02
    seed: int = 0
    sequence_length: int = 256
    max_tokens: int | None = None
    keep_duplicates: bool = False
    is_strict: bool = False


def prepare_data(plan: Preparation, tokenizer: PreTrainedTokenizerBase) -> DataReport:
    """Make the folder ``plan.out``.

    Raises:
        ConfigError: settings that cannot be, or a folder that is not empty.
        DataError: a source that cannot be read, no row that can be used, or one where all have to be.
        ResourceError: it cannot be written.
    """
    _check(plan)
    with _made_whole(plan.out) as folder:
        report = _Preparing(plan, tokenizer, folder).run()
        settings = {
            "target": plan.target,
            "sources": list(plan.sources),
            "subset": plan.subset,
            "renamed": dict(plan.columns.renamed),
            "chat": plan.columns.as_chat,
            "held_out_fraction": plan.held_out_fraction,
            "seed": plan.seed,
            "sequence_length": plan.sequence_length,
            "max_tokens": plan.max_tokens,
            "keep_duplicates": plan.keep_duplicates,
            "versions": versions(),
        }
        with _writing(plan.out):
            text = json.dumps({**report_json(report), "settings": settings}, indent=1, ensure_ascii=False)
            (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    return report


def _check(plan: Preparation) -> None:
    if not 0 <= plan.held_out_fraction < 1:
        raise ConfigError(f"--held-out is {plan.held_out_fraction:g}; allowed is 0 (no split) up to below 1")
    if plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise ConfigError(f"{plan.out} exists and is not an empty folder; choose another --out")


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place at the end, and goes when anything fails."""
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in remove_left(out):
            logger.info("%s, left by a process that was killed, is removed", left)
        partial.mkdir()
    try:
        yield partial
        with _writing(out):
            sync(partial)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _writing(path: Path) -> AbstractContextManager[None]:
    return writing(path, lambda: "make room or choose another --out, and try again")


@dataclass(frozen=True)
class _Item:
    """An example with the lengths of its documents, ``(tokens, supervised)``, and its place in the split."""

    example: Example
    lengths: tuple[tuple[int, int], ...]
    rank: int


class _Part:
    """A file that grows, and the lengths in it."""

    def __init__(self, name: str, plan: Preparation, folder: Path) -> None:
        self.num_examples = 0
        self._name = f"{name}.{plan.file_format}"
        self._path = folder / self._name
        self._plan = plan
        self._tokens, self._supervised = LengthCounter(), LengthCounter()
        with _writing(plan.out):
            self._writer = _WRITERS[plan.file_format](self._path)

    def add(self, item: _Item) -> None:
        with _writing(self._plan.out):
            self._writer.write(item.example)
        self.num_examples += 1
        for tokens, supervised in item.lengths:
            self._tokens.add(tokens)
            self._supervised.add(supervised)

    def close(self) -> None:
        with _writing(self._plan.out):
            self._writer.close()
            sync(self._path)

    def report(self) -> PartReport:
        return PartReport(
            file=self._name,
            num_examples=self.num_examples,
            num_documents=self._tokens.number,
            num_cut=self._tokens.count_above(self._plan.sequence_length),
            tokens=self._tokens.lengths(),
            supervised=self._supervised.lengths(),
        )


class _Preparing:
    """The rows' way through."""

    def __init__(self, plan: Preparation, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._folder = folder
        self._num_rows = self._num_duplicates = self._num_unusable = 0
        self._problems: dict[str, str] = {}
        self._ignored: set[str] = set()

    def run(self) -> DataReport:
        plan = self._plan
        with ExitStack() as stack:
            seen = stack.enter_context(SeenPrompts(self._folder / "seen"))
            train = _Part(TRAIN, plan, self._folder)
            stack.callback(train.close)
            held_out = _Part(HELD_OUT, plan, self._folder) if plan.held_out_fraction else None
            if held_out is not None:
                stack.callback(held_out.close)
            self._split(self._items(seen), train, held_out)
        return DataReport(
            num_rows=self._num_rows,
            num_duplicates=self._num_duplicates,
            num_unusable=self._num_unusable,
            problems=tuple(self._problems.values()),
            ignored_columns=tuple(sorted(self._ignored)),
            train=train.report(),
            held_out=None if held_out is None else held_out.report(),
        )

    def _items(self, seen: SeenPrompts) -> Iterator[_Item]:
        for source, row in read_sources(self._plan.sources, subset=self._plan.subset):
            self._num_rows += 1
            if self._num_rows % _LOG_EVERY == 0:
                logger.info("%d rows read", self._num_rows)
            try:
                item, prompt = self._item(row, source)
            except DataError as error:
                self._leave_out(error, source)
                continue
            with _writing(self._plan.out):
                is_new = seen.add(prompt)
            if is_new or self._plan.keep_duplicates:
                yield item
            else:
                self._num_duplicates += 1

    def _item(self, row: dict[str, object], source: str) -> tuple[_Item, bytes]:
        """A row as a checked example, and the hash of its prompt; raises DataError when it is of no use."""
        example, ignored = self._plan.columns.example(row, source)
        made = list(documents([example], self._tokenizer))
        if isinstance(example, ChatExample) and (problem := mask_problem(example, made, self._tokenizer)):
            raise DataError(f"{source}: the loss mask does not fit the chat template: {problem}")
        lengths = tuple((len(one.tokens), int(one.supervised.sum())) for one in made)
        if self._plan.max_tokens is not None and max(tokens for tokens, _ in lengths) > self._plan.max_tokens:
            raise DataError(f"{source}: longer than --max-tokens {self._plan.max_tokens}")
        self._ignored.update(ignored)
        prompt = prompt_hash(prompt_of(example))
        rank = hashlib.blake2b(prompt, digest_size=8, salt=self._plan.seed.to_bytes(8, "big")).digest()
        return _Item(example, lengths, int.from_bytes(rank, "big")), prompt

    def _leave_out(self, error: DataError, source: str) -> None:
        if self._plan.is_strict:
            raise error
        self._num_unusable += 1
        kind = re.sub(r"\d+", "", str(error).removeprefix(source))
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.setdefault(kind, str(error))
        if self._num_unusable == self._num_rows == _HOPELESS_ROWS:
            raise DataError(f"none of the first {_HOPELESS_ROWS} rows can be used; the first: {self._first}")

    @property
    def _first(self) -> str:
        return next(iter(self._problems.values()))

    def _split(self, items: Iterator[_Item], train: _Part, held_out: _Part | None) -> None:
        """Each item to its side; where chance holds nothing out, the prompt of the lowest rank is."""
        limit = int(self._plan.held_out_fraction * 2**64)
        lowest: list[_Item] = []
        for item in items:
            if held_out is not None and item.rank < limit:
                held_out.add(item)
            elif held_out is None or (lowest and item.rank > lowest[0].rank):
                train.add(item)
            elif lowest and item.rank < lowest[0].rank:
                for before in lowest:
                    train.add(before)
                lowest = [item]
            else:
                lowest.append(item)
        last = train if held_out is None or held_out.num_examples else held_out
        for item in lowest:
            last.add(item)
        if not train.num_examples:
            self._refuse_empty(held_out)

    def _refuse_empty(self, held_out: _Part | None) -> None:
        if self._num_unusable == self._num_rows:
            raise DataError(f"none of {self._num_rows} rows can be used; the first: {self._first}")
        number = held_out.num_examples if held_out is not None else 0
        raise DataError(
            f"all {number} examples would be held out, there are too few prompts to split; give more, "
            "or --held-out 0"
        )
