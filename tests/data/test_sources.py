"""By which a source is known again: its bytes and rows, not where it lies."""

from __future__ import annotations

import datasets
import pytest

from deepspec.data.sources import file_sources, source_fingerprint
from deepspec.errors import DataError


def test_files_are_known_by_their_bytes_in_order_wherever_they_lie(tmp_path):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text('{"text": "a"}\n')
    two.write_text('{"text": "b"}\n')
    found = source_fingerprint([str(one), str(two)])
    assert found == source_fingerprint([str(tmp_path)]) != source_fingerprint([str(two), str(one)])
    moved = one.rename(tmp_path / "0.jsonl")
    assert source_fingerprint([str(moved), str(two)]) == found
    moved.write_text('{"text": "c"}\n')
    assert source_fingerprint([str(moved), str(two)]) != found
    with pytest.raises(DataError, match="no such file or folder"):
        source_fingerprint(["absent.jsonl"])


def test_a_data_set_is_known_by_its_name_split_size_and_ends(monkeypatch):
    rows = [{"text": text} for text in "abc"]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    found = source_fingerprint(["owner/name:test"])
    assert found == source_fingerprint(["owner/name:test"])
    others = [source_fingerprint(["owner/name"]), source_fingerprint(["owner/name:test"], subset="main")]
    rows.append({"text": "d"})
    others.append(source_fingerprint(["owner/name:test"]))
    rows[-1] = {"text": "e"}
    others.append(source_fingerprint(["owner/name:test"]))
    assert len({found, *others}) == 5


def test_files_are_told_from_data_sets(tmp_path):
    (tmp_path / "a").write_text("")
    assert file_sources([str(tmp_path / "a"), "owner/name", "b.jsonl"]) == [str(tmp_path / "a"), "b.jsonl"]
