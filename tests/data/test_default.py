"""The default text: bounded, the same each time, and none of what the demo target was trained on."""

from __future__ import annotations

import pytest

from deepspec.data import default
from deepspec.data.default import default_examples
from deepspec.data.local_text import HELD_OUT_PACKAGES, TARGET_PACKAGES, package_files, stdlib_files
from deepspec.errors import DataError


def test_it_is_the_same_each_time_bounded_in_bytes_and_taken_from_several_packages():
    examples = default_examples([], byte_limit=1_000_000)
    assert examples == default_examples([], byte_limit=1_000_000)
    assert 500_000 < sum(len(example.text.encode()) for example in examples) <= 1_000_000
    assert len({example.source.split("/")[0] for example in examples}) >= 5


def test_no_file_of_it_is_of_the_target_s_training_text():
    own = {file.path for file in package_files(HELD_OUT_PACKAGES)}
    assert own
    assert own.isdisjoint(file.path for file in package_files(TARGET_PACKAGES))
    assert own.isdisjoint(file.path for file in stdlib_files(held_out=False))


def test_files_that_spell_out_a_special_token_are_left_out():
    everything = default_examples([], byte_limit=500_000)
    assert any("import os" in example.text for example in everything)
    kept = default_examples(["import os"], byte_limit=500_000)
    assert 0 < len(kept) < len(everything)
    assert not any("import os" in example.text for example in kept)


def test_without_the_packages_it_says_to_give_data(monkeypatch):
    monkeypatch.setattr(default, "HELD_OUT_PACKAGES", ("no-such-package",))
    with pytest.raises(DataError, match=r"no-such-package .*give --data FILE\.jsonl"):
        default_examples([])
