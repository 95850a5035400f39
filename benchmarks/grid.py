"""A grid of measurements that takes several runs: each finished cell is saved, and the next run goes on.

A cell is named by its values (``{"objective": "paper", "seed": 0, ...}``). The record keeps the date on which
it was begun; each cell has the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import records

Cell = Mapping[str, str | int]
Result = dict[str, Any]
Protocol = Mapping[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """How much of a grid one run does."""
    parser.add_argument("--cells", type=int, metavar="N", help="stop after N cells")
    parser.add_argument("--minutes", type=float, help="begin no cell that would probably end later than this")
    parser.add_argument(
        "--fresh", action="store_true", help="begin a new record, in the place of one of today"
    )


def run_grid(
    kind: str,
    setting: str,
    cells: Sequence[Cell],
    measure: Callable[[Cell], Result],
    summarise: Callable[[Sequence[Result]], Any],
    *,
    options: argparse.Namespace,
    cost: Callable[[Cell], float],
    protocol: Protocol,
) -> tuple[list[Result], list[str]]:
    """Measure the cells that the newest record of ``kind`` lacks, in order, as far as ``options`` allow.

    Args:
        setting: what all cells share; a record of another setting is not gone on with.
        measure: what a cell comes to; its own values are added.
        summarise: of all finished cells, stored beside them.
        options: those of :func:`add_options`.
        cost: what a cell's time is proportional to.
        protocol: the record's seed, warm-up and repeats.

    Returns:
        All finished cells, and lines that say where the record is.
    """
    found = None if options.fresh else records.newest(kind)
    if found is not None and found["result"]["setting"] != setting:
        raise SystemExit(f"the newest record of {kind!r} has another setting; begin a new one with --fresh")
    done: list[Result] = [] if found is None else found["result"]["cells"]
    date = None if found is None else found["date"]
    left = [cell for cell in cells if not any(cell.items() <= one.items() for one in done)]
    started, lines = time.monotonic(), [f"{len(cells) - len(left)} of {len(cells)} cells were there"]
    for cell in left[: options.cells]:
        spent = time.monotonic() - started
        if options.minutes is not None and spent + _expected(cell, done, cost) > 60 * options.minutes:
            break
        began = time.monotonic()
        result = measure(cell)
        seconds = round(time.monotonic() - began, 1)
        done.append({**cell, **result, "seconds": seconds, "commit": records.environment()["commit"]})
        stored = {"setting": setting, "summary": summarise(done), "cells": done}
        lines = records.write(kind, stored, date=date, **protocol)
        print(", ".join(f"{key} {value}" for key, value in cell.items()), f"({seconds:.0f} s)", flush=True)
    return done, lines


def _expected(cell: Cell, done: Sequence[Result], cost: Callable[[Cell], float]) -> float:
    """Seconds that a cell may take, by the slowest so far; 0 when none was measured."""
    return cost(cell) * max((one["seconds"] / cost(one) for one in done), default=0.0)
