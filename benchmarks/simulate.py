"""What length policies are worth under simulated load, on an H200's roofline, smooth and by tiles.

Acceptance is the model fitted to published accepted lengths. Every policy serves the same requests; best
fixed is the best of drafting 0, 1, 2, 4 or 7 tokens each round. The oracle knows confidences before it
drafts. One-token drafting (MTP-1) drafts for nothing here, which favours it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import records
import torch
from rich.console import Console
from rich.table import Table

from deepspec.curves import SpsCurve
from deepspec.interfaces import PartConfig
from deepspec.roofline import HARDWARE, TARGETS, roofline_curve, tiled
from deepspec.simulate.comparison import build_policy, context, serve_point
from deepspec.simulate.oracle import OracleLength
from deepspec.simulate.serving import PREFILL_CHUNK
from deepspec.simulate.workload import Workload

DRAFT_LENGTH, SEED, TILE = 7, 0, 64
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
JAGGED = (16, 32, 64, 128, 256)
FIXED = tuple(f"fixed:length={n}" for n in (0, 1, 2, 4, 7))
POLICIES = (*FIXED, "prefix", "topk", "cliff", "frugal", "oracle")
#: Tokens a second that a user is to have, in the midst of what each target can give.
INTERACTIVITY = {"4b": 400.0, "70b": 80.0}
SPEED_STEPS, SPEED_REQUESTS, SPEED_ALLOWED = 100_000, 200, 60.0


def curve_of(target: str, concurrency: int, tile: int = 1) -> SpsCurve:
    most = concurrency * (1 + DRAFT_LENGTH) + PREFILL_CHUNK
    curve = roofline_curve(
        HARDWARE["h200"],
        TARGETS[target],
        num_requests=concurrency,
        context_length=Workload().context_length,
        most_tokens=most,
    )
    return curve if tile == 1 else tiled(curve, tile, most)


def run(name: str, curve: SpsCurve, concurrency: int, num_steps: int) -> dict[str, Any]:
    foresees = name == "oracle"
    made = OracleLength(PartConfig(), context(DRAFT_LENGTH)) if foresees else None
    policy = made or build_policy(name, DRAFT_LENGTH)
    served = serve_point(
        policy,
        curve,
        Workload(),
        concurrency=concurrency,
        num_steps=num_steps,
        seed=SEED,
        foresees=foresees,
    )
    return {key: round(value, 4) for key, value in asdict(served).items()}


def frontier(target: str, scale: float) -> list[dict[str, Any]]:
    """Every policy at every concurrency on the smooth curve, and one-token drafting that costs nothing."""
    points = []
    for concurrency in CONCURRENCIES:
        curve, steps = curve_of(target, concurrency), steps_at(concurrency, scale)
        found = {name: run(name, curve, concurrency, steps) for name in POLICIES}
        free = curve.model_copy(update={"draft": None})
        found["mtp-1"] = run("fixed:length=1", free, concurrency, steps)
        points.append({"concurrency": concurrency, "steps": steps, "policies": found})
    return points


def steps_at(concurrency: int, scale: float) -> int:
    return int(scale * max(2_000, 30_000 // concurrency))


def jagged(target: str, scale: float) -> list[dict[str, Any]]:
    """The prefix scheduler, cliff and the oracle on stairs."""
    points = []
    for concurrency in JAGGED:
        curve = curve_of(target, concurrency, TILE)
        steps = steps_at(concurrency, scale)
        found = {name: run(name, curve, concurrency, steps) for name in ("prefix", "topk", "cliff", "oracle")}
        points.append({"concurrency": concurrency, "steps": steps, "policies": found})
    return points


def summary(smooth: list[dict[str, Any]], stairs: list[dict[str, Any]], wanted: float) -> dict[str, Any]:
    """The smallest ratios over the loads, and the throughput at a given speed for each user."""

    def least(a: str, *others: str) -> float:
        return min(_tokens(p, a) / max(_tokens(p, b) for b in others) for p in smooth)

    crossing = [_tokens(point, "cliff") / _tokens(point, "prefix") for point in stairs]
    at = {name: _at_speed(smooth, name, wanted) for name in ("mtp-1", "prefix", "frugal")}
    return {
        "frugal_over_plain": round(least("frugal", FIXED[0]), 4),
        "frugal_over_best_fixed": round(least("frugal", *FIXED), 4),
        "frugal_over_oracle": round(least("frugal", "oracle"), 4),
        "prefix_over_best_fixed": round(least("prefix", *FIXED), 4),
        "prefix_over_oracle": round(least("prefix", "oracle"), 4),
        "cliff_over_prefix_on_stairs": [round(ratio, 4) for ratio in crossing],
        "tokens_per_s_at": {"tokens_per_s_per_user": wanted, **{k: round(v, 1) for k, v in at.items()}},
        "verify_budget": {p["concurrency"]: p["policies"]["frugal"]["verify_budget"] for p in smooth},
    }


def _tokens(point: dict[str, Any], policy: str) -> float:
    return float(point["policies"][policy]["tokens_per_s"])


def _at_speed(points: list[dict[str, Any]], policy: str, wanted: float) -> float:
    """The most tokens a second at which a user still has ``wanted``, between two loads by a straight line."""
    found = [(p["policies"][policy]["tokens_per_s_per_user"], _tokens(p, policy)) for p in points]
    best = 0.0
    for (fast, few), (slow, many) in pairwise(found):
        if fast >= wanted > slow:
            best = max(best, few + (fast - wanted) / (fast - slow) * (many - few))
    return best


def speed() -> dict[str, dict[str, float]]:
    """Seconds of processor and of the clock for 100,000 steps at 200 requests on one thread."""
    found = {}
    for name in ("fixed", "prefix", "frugal"):
        clock, used = time.perf_counter(), time.process_time()
        run(name, curve_of("70b", SPEED_REQUESTS), SPEED_REQUESTS, SPEED_STEPS)
        found[name] = {
            "processor_s": round(time.process_time() - used, 1),
            "clock_s": round(time.perf_counter() - clock, 1),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual steps, for a quick look")
    parser.add_argument("--note", default="", help="about the machine, for the record: what else ran on it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False)
    result: dict[str, Any] = {"note": options.note, "tile": TILE}
    for target, wanted in INTERACTIVITY.items():
        smooth, stairs = frontier(target, options.scale), jagged(target, options.scale)
        table = Table("at once", *(*POLICIES, "mtp-1"), title=f"{target}, tokens/s")
        for point in smooth:
            table.add_row(
                str(point["concurrency"]), *(f"{_tokens(point, name):.0f}" for name in (*POLICIES, "mtp-1"))
            )
        console.print(table)
        found = summary(smooth, stairs, wanted)
        console.print(found)
        result[target] = {"summary": found, "smooth": smooth, "stairs": stairs}
    result["speed"] = speed()
    console.print(result["speed"])
    warm_up = "a fifth of the steps"
    for line in records.write("simulate", result, seed=SEED, warm_up=warm_up, repeats="one run a point"):
        console.print(line)
    held = all(
        result[target]["summary"][name] >= least
        for target in INTERACTIVITY
        for name, least in (
            ("frugal_over_plain", 0.98),
            ("frugal_over_best_fixed", 0.98),
            ("frugal_over_oracle", 0.97),
        )
    )
    return int(not held or max(one["processor_s"] for one in result["speed"].values()) > SPEED_ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
