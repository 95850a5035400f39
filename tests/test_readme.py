"""The README's numbers are those of the records; its code and links are tested with other pages' in watch."""

from __future__ import annotations

from pathlib import Path

import records

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_measured_numbers_are_those_of_the_newest_records() -> None:
    measured = README.split(records.BEGIN)[1].split(records.END)[0].strip()
    assert measured == records.tables().strip()
