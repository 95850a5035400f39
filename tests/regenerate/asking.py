"""Regeneration as the tests call it, and what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deepspec.regenerate import Regeneration, RegenerationReport, Server, ServerWriter, regenerate
from deepspec.regenerate.client import Patience
from deepspec.sampling import SamplingParams
from tests.regenerate.misbehaving import Misbehaving

PARAMS = SamplingParams(seed=3, max_tokens=16)


class Pauses(list[float]):
    """Sleeps not at all and keeps for how long it was to."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def patience(**changes: Any) -> Patience:
    return Patience(**{"sleep": Pauses(), "timeout_s": 5.0, "retries": 3, **changes})


def plan(source: Path, out: Path, **changes: Any) -> Regeneration:
    return Regeneration(**{"sources": (str(source),), "out": out, **changes})


def ask(
    server: Misbehaving,
    source: Path,
    out: Path,
    *,
    concurrency: int = 8,
    patient: Patience | None = None,
    extra: dict[str, Any] | None = None,
    params: SamplingParams = PARAMS,
    **changes: Any,
) -> RegenerationReport:
    """Regenerate by a server that was found where the test started it."""
    found = Server.at(server.url, extra=extra, patience=patient or patience())
    return regenerate(plan(source, out, **changes), ServerWriter(found, params, concurrency=concurrency))


def rows(out: Path) -> list[dict[str, Any]]:
    """The samples by their numbers; each is there once."""
    found = [json.loads(line) for line in out.read_bytes().splitlines()]
    found.sort(key=lambda row: row["provenance"]["number"])
    numbers = [row["provenance"]["number"] for row in found]
    assert len(set(numbers)) == len(numbers)
    return found


def left_out(out: Path) -> list[dict[str, Any]]:
    path = out.with_name(f"{out.name}.left-out")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
