"""The server, and sources to ask of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.regenerate.misbehaving import Misbehaving, misbehaving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with misbehaving() as started:
        yield started


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """40 rows: conversations of one and two turns, prompts, and running text."""
    return save_source(tmp_path / "source.jsonl")


def save_source(path: Path, num_rows: int = 40) -> Path:
    rows = []
    for number in range(num_rows):
        asked = {"role": "user", "content": f"question {number}"}
        said = {"role": "assistant", "content": "of the source"}
        forms = (
            {"messages": [asked, said]},
            {"messages": [{"role": "system", "content": "short"}, asked, said, asked, said]},
            {"prompt": f"prompt {number}"},
            {"text": f"text {number} " * 9},
        )
        rows.append(forms[number % 4])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
