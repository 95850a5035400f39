"""What length policies are worth under simulated load, on an H200's roofline, smooth and by tiles.

Acceptance is the model fitted to published accepted lengths. Every policy serves the same requests; best
fixed is the best of drafting 0, 1, 2, 4 or 7 tokens each round. The oracle knows confidences before it
drafts. One-token drafting (MTP-1) drafts for nothing here, which favours it. Throughput is compared with its
own where both give each user the same speed.
"""

from __future__ import annotations

import argparse
import math
import statistics
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

DRAFT_LENGTH, SEEDS, TILE = 7, (0, 1, 2), 64
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
JAGGED = (16, 32, 64, 128, 256)
FIXED = tuple(f"fixed:length={n}" for n in (0, 1, 2, 4, 7))
POLICIES = (*FIXED, "prefix", "topk", "cliff", "frugal", "oracle")
#: Where between the slowest and the fastest that one-token drafting gives a user speeds are compared; the
#: middle is the mid interactivity target.
BETWEEN = {"quarter": 0.25, "middle": 0.5, "three quarters": 0.75}
PUBLISHED_GAIN = "1.51 over MTP-1 at 80 tokens/s for each user (2607.05147)"
MOST_STEPS = 100_000
SPEED_REQUESTS, SPEED_ALLOWED = 200, 60.0
#: The least that frugal may be of each, over all loads.
BOUNDS = {"frugal_over_plain": 0.98, "frugal_over_best_fixed": 0.98, "frugal_over_oracle": 0.97}


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


def run(name: str, curve: SpsCurve, concurrency: int, num_tokens: float, seed: int = 0) -> dict[str, Any]:
    foresees = name == "oracle"
    made = OracleLength(PartConfig(), context(DRAFT_LENGTH)) if foresees else None
    policy = made or build_policy(name, DRAFT_LENGTH)
    served = serve_point(
        policy,
        curve,
        Workload(),
        concurrency=concurrency,
        num_steps=MOST_STEPS,
        num_tokens=num_tokens,
        seed=seed,
        foresees=foresees,
    )
    return asdict(served)


def averaged(name: str, curve: SpsCurve, concurrency: int, num_tokens: float) -> dict[str, Any]:
    """Means over the seeds, and the throughput with each."""
    found = [run(name, curve, concurrency, num_tokens, seed) for seed in SEEDS]
    means = {key: round(statistics.fmean(one[key] for one in found), 4) for key in found[0]}
    return {**means, "tokens_per_s_by_seed": [round(one["tokens_per_s"], 1) for one in found]}


def frontier(target: str, scale: float) -> list[dict[str, Any]]:
    """Every policy at every concurrency on the smooth curve, and one-token drafting that costs nothing."""
    points = []
    for concurrency in CONCURRENCIES:
        curve, tokens = curve_of(target, concurrency), tokens_at(concurrency, scale)
        found = {name: averaged(name, curve, concurrency, tokens) for name in POLICIES}
        free = curve.model_copy(update={"draft": None})
        found["mtp-1"] = averaged("fixed:length=1", free, concurrency, tokens)
        points.append({"concurrency": concurrency, "tokens": tokens, "policies": found})
    return points


def tokens_at(concurrency: int, scale: float) -> float:
    """What is written with each seed: by each slot as much as two answers at least, thirty by one alone."""
    return scale * max(15_000, 1_024 * concurrency)


def jagged(target: str, scale: float) -> list[dict[str, Any]]:
    """Every policy on stairs."""
    points = []
    for concurrency in JAGGED:
        curve = curve_of(target, concurrency, TILE)
        tokens = tokens_at(concurrency, scale)
        found = {name: averaged(name, curve, concurrency, tokens) for name in POLICIES}
        points.append({"concurrency": concurrency, "tokens": tokens, "policies": found})
    return points


def summary(smooth: list[dict[str, Any]], stairs: list[dict[str, Any]]) -> dict[str, Any]:
    """The smallest ratios over the loads, and the throughput at given speeds for each user."""

    def least(a: str, *others: str) -> float:
        return round(min(_ratio(point, a, *others) for point in smooth), 4)

    ratios = {
        "frugal_over_plain": least("frugal", FIXED[0]),
        "frugal_over_best_fixed": least("frugal", *FIXED),
        "frugal_over_oracle": least("frugal", "oracle"),
        "prefix_over_plain": least("prefix", FIXED[0]),
        "prefix_over_best_fixed": least("prefix", *FIXED),
        "prefix_over_oracle": least("prefix", "oracle"),
    }
    pairs = (("cliff", "prefix"), ("cliff", "oracle"), ("prefix", "oracle"), ("frugal", "oracle"))
    return {
        **ratios,
        "least_of_one_seed": {
            "frugal_over_best_fixed": round(min(_worst(point, *FIXED) for point in smooth), 4),
            "frugal_over_oracle": round(min(_worst(point, "oracle") for point in smooth), 4),
        },
        "on_stairs": {f"{a}_over_{b}": [round(_ratio(point, a, b), 4) for point in stairs] for a, b in pairs},
        "at_equal_speed": {name: _at_share(smooth, share) for name, share in BETWEEN.items()},
        "verify_budget": {p["concurrency"]: p["policies"]["frugal"]["verify_budget"] for p in smooth},
    }


def _ratio(point: dict[str, Any], policy: str, *others: str) -> float:
    return _tokens(point, policy) / max(_tokens(point, other) for other in others)


def _worst(point: dict[str, Any], *others: str) -> float:
    """The smallest over the seeds of frugal's throughput over the best of the others'."""
    by_seed = {name: point["policies"][name]["tokens_per_s_by_seed"] for name in ("frugal", *others)}
    best = [max(by_seed[other][n] for other in others) for n in range(len(SEEDS))]
    return min(mine / most for mine, most in zip(by_seed["frugal"], best, strict=True))


def _tokens(point: dict[str, Any], policy: str) -> float:
    return float(point["policies"][policy]["tokens_per_s"])


def _at_share(smooth: list[dict[str, Any]], share: float) -> dict[str, float]:
    """Throughput where each user has a speed so far between one-token drafting's ends, and what it gains."""
    speeds = [point["policies"]["mtp-1"]["tokens_per_s_per_user"] for point in smooth]
    wanted = min(speeds) + share * (max(speeds) - min(speeds))
    found = {name: _at_speed(smooth, name, wanted) for name in ("mtp-1", "prefix", "frugal")}
    gains = {f"{name}_gain": round(found[name] / found["mtp-1"], 4) for name in ("prefix", "frugal")}
    return {
        "tokens_per_s_per_user": round(wanted, 1),
        **{name: round(value, 1) for name, value in found.items()},
        **gains,
    }


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
    for name, tile in (("prefix", 1), ("topk", 1), ("frugal", 1), ("frugal", TILE)):
        clock, used = time.perf_counter(), time.process_time()
        run(name, curve_of("70b", SPEED_REQUESTS, tile), SPEED_REQUESTS, math.inf)
        found[name if tile == 1 else f"{name} on stairs"] = {
            "processor_s": round(time.process_time() - used, 1),
            "clock_s": round(time.perf_counter() - clock, 1),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the usual tokens, for a quick look"
    )
    parser.add_argument("--note", default="", help="about the machine, for the record: what else ran on it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(highlight=False)
    result: dict[str, Any] = {"note": options.note, "tile": TILE, "published_gain": PUBLISHED_GAIN}
    for target in TARGETS:
        smooth, stairs = frontier(target, options.scale), jagged(target, options.scale)
        table = Table("at once", *(*POLICIES, "mtp-1"), title=f"{target}, tokens/s")
        for point in smooth:
            table.add_row(
                str(point["concurrency"]), *(f"{_tokens(point, name):.0f}" for name in (*POLICIES, "mtp-1"))
            )
        console.print(table)
        found = summary(smooth, stairs)
        console.print(found)
        result[target] = {"summary": found, "smooth": smooth, "stairs": stairs}
    result["speed"] = speed()
    console.print(result["speed"])
    warm_up, repeats = "a fifth of the steps", f"{len(SEEDS)} seeds a point, means"
    for line in records.write("simulate", result, seed=SEEDS[0], warm_up=warm_up, repeats=repeats):
        console.print(line)
    held = all(
        result[target]["summary"][name] >= least for target in TARGETS for name, least in BOUNDS.items()
    )
    return int(not held or max(one["processor_s"] for one in result["speed"].values()) > SPEED_ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
