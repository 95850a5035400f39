"""Settings with stored features, caches made by them, and what trains on them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deepspec.config import RunConfig
from deepspec.features.planned import CacheReport, plan_cache
from deepspec.features.write import write_features
from deepspec.runs import Run
from deepspec.train import train
from tests.tiny_runs import config

#: A handful of shards of the tiny target's features.
SHARD_BYTES = 100_000


def settings(target: Path, text: Path, folder: Path, /, *, bits: int = 32, **changes: Any) -> RunConfig:
    features = {"source": "cached", "bits": bits, "folder": str(folder)}
    return config(target, text, features=features, **changes)


def write(chosen: RunConfig, *, part: tuple[int, int] = (1, 1)) -> CacheReport:
    return write_features(plan_cache(chosen, shard_bytes=SHARD_BYTES), part=part)


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*"))}


def run(chosen: RunConfig, out: Path, *, resume: bool = False, observers: Iterable[Any] = ()) -> Run:
    return train(chosen.strategy, config=chosen, out=out, resume=resume, observers=list(observers))


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]
