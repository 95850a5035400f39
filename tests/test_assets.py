"""What ships: binaries that match their build logs, small enough, and loadable."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import pytest

from deepspec.paths import asset
from deepspec.target import demo

LIMITS = {"demo-target": 14_000_000, "demo-drafter": 4_000_000}


@pytest.mark.parametrize("name", LIMITS)
def test_shipped_weights_match_their_build_log(name: str) -> None:
    folder = asset(name)
    logged = json.loads((folder / "build-log.json").read_text())["sha256"]
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.safetensors")
    }
    assert found
    assert found == logged


@pytest.mark.parametrize("name", LIMITS)
def test_shipped_folders_stay_small(name: str) -> None:
    size = sum(path.stat().st_size for path in asset(name).rglob("*") if path.is_file())
    assert size <= LIMITS[name]


@pytest.mark.parametrize("name", LIMITS)
def test_shipped_folders_state_provenance_and_licence(name: str) -> None:
    text = (asset(name) / "README.md").read_text()
    assert "icence" in text
    assert "build-log.json" in text


def test_the_shipped_target_was_made_by_the_recipe_in_the_code() -> None:
    logged = json.loads((asset("demo-target") / "build-log.json").read_text())["recipe"]
    assert logged == dataclasses.asdict(demo.RECIPE)
