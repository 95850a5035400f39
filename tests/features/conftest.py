"""A tiny target, two texts, and settings with stored features."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.tiny_runs import save_target

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "and", "then", "saw"]


def save_documents(path: Path, *, seed: int, number: int = 12) -> Path:
    """Prompts with responses, no two alike."""
    chosen = random.Random(seed)
    lines = []
    for count in range(number):
        prompt = f"{seed}.{count}: {' '.join(chosen.choices(WORDS, k=6))}"
        lines.append(json.dumps({"prompt": prompt, "response": " ".join(chosen.choices(WORDS, k=30))}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_documents(tmp_path_factory.mktemp("text") / "text.jsonl", seed=0)
