"""Dated records of measurements, with what is needed to repeat them; and their part of the README.

``python benchmarks/records.py`` rewrites the README's tables from the newest records; ``--check`` compares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tables import TABLES

from deepspec.environment import commit, device_name, versions
from deepspec.paths import written_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def environment() -> dict[str, Any]:
    """Date, the device that is taken when none is named, versions and commit."""
    import torch

    from deepspec.target.load import resolve_device

    device = resolve_device(None)
    return {
        "date": datetime.now(tz=UTC).strftime("%Y-%m-%d"),
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "versions": versions(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def write(
    kind: str, result: dict[str, Any], *, seed: int, warm_up: str, repeats: str, date: str | None = None
) -> list[str]:
    """Store a record as ``results/<date>-<kind>.json``; returns lines that say where and under what.

    ``date`` is that of a record that is gone on with, today's when None.
    """
    protocol = {"seed": seed, "warm_up": warm_up, "repeats": repeats}
    record = {"kind": kind, **environment(), **protocol, "result": result}
    record["date"] = date or record["date"]
    path = RESULTS / f"{record['date']}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    named = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return [
        f"{record['device']} ({record['device_type']}), {record['threads']} threads; {named}",
        f"commit {record['commit']}; seed {seed}; warm-up: {warm_up}; repeats: {repeats}",
        f"record: {path}",
    ]


def newest(kind: str) -> dict[str, Any] | None:
    """The latest record of a kind."""
    paths = sorted(RESULTS.glob(f"*-{kind}.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def tables() -> str:
    """The README's measured section, from the newest records alone; FileNotFoundError without any."""
    found = ((table, newest(kind)) for kind, table in TABLES.items())
    parts = [table(record) for table, record in found if record is not None]
    if not parts:
        raise FileNotFoundError(f"no record lies in {RESULTS}; run `make bench`")
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = README.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = f"{head}{BEGIN}\n{tables()}\n{END}{tail}"
    if parser.parse_args().check:
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
