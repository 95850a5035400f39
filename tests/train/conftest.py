"""A tiny target and text, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_runs import save_target, save_text


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "text.jsonl")
