"""The simulator against the real engine: the demo's throughput under load, each load with a curve of its own.

Each repeat profiles the machine with that many requests, serves real traffic through the engine under every
policy, in an order that rotates, and simulates the same with the curve just measured and recorded rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import records
from rich.console import Console
from traffic import Traffic

import deepspec
from deepspec import Engine, SamplingParams
from deepspec.config import EvalConfig
from deepspec.curves import SpsCurve
from deepspec.evaluate import ProfileConfig, profile
from deepspec.evaluate.measure import decode_tasks
from deepspec.evaluate.tasks import Prompts, collect_prompts
from deepspec.redecoding import redecoded
from deepspec.runs import Run
from deepspec.simulate import RecordedAcceptance, Requests, build_policy, serve
from deepspec.simulate.recorded import RecordedRounds, read_rounds

SETTING = "the shipped demo target and drafter, code and prose"
SEED, MAX_TOKENS, CHUNK = 0, 64, 512
CONCURRENCIES = (1, 4, 16)
POLICIES = {"plain": {"type": "fixed", "length": 0}, "fixed": {"type": "fixed"}, "frugal": {"type": "frugal"}}
SIMULATED_STEPS = 4000
#: How near the simulator is to be: this, or twice the measured spread.
ALLOWED = 0.10


def engine_speed(run: Run, policy: dict[str, Any], prompts: Prompts, num: int, seconds: float) -> float:
    """Tokens a second of ``num`` endless users, after some steps that warm up."""
    engine = Engine(
        run.target,
        redecoded(run.parts, policy=policy),
        max_batch=num,
        prefill_chunk=CHUNK,
        seed=SEED,
    )
    traffic = Traffic(engine, num)
    params = SamplingParams(max_tokens=MAX_TOKENS, ignore_stop=True)
    traffic.run(prompts, params, 2 * MAX_TOKENS // 4)
    gained, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        gained += traffic.run(prompts, params, 5)
    return gained / (time.perf_counter() - started)


def recorded(run: Run, prompts: Prompts) -> RecordedRounds:
    """Rounds of these prompts at full length, with the head's confidences as chances."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rounds.parquet"
        config = EvalConfig(max_tokens=MAX_TOKENS, seed=SEED)
        decode_tasks(run.target, run.parts, {"all": prompts}, config, trace=path)
        return read_rounds(path)


def simulated_speed(
    run: Run,
    policy: dict[str, Any],
    curve: SpsCurve,
    rounds: RecordedRounds,
    prompts: Prompts,
    num: int,
) -> float:
    """The simulator's tokens a second of the same traffic."""
    requests = Requests(
        classes=np.zeros(len(prompts), np.int64),
        prompt_tokens=np.array([len(prompt) for prompt in prompts]),
        output_tokens=np.full(len(prompts), MAX_TOKENS),
    )
    options = [f"{key}={value}" for key, value in policy.items() if key not in ("type", "curve")]
    made = build_policy(":".join([policy["type"], *options]), run.parts.drafter.context.draft_length)
    return serve(
        made,
        curve,
        RecordedAcceptance(rounds, num, SEED),
        requests,
        num_slots=num,
        num_steps=SIMULATED_STEPS,
        prefill_chunk=CHUNK,
    ).tokens_per_s


def measure_load(
    run: Run, prompts: Prompts, rounds: RecordedRounds, num: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Both speeds under each policy with ``num`` users, over the repeats."""
    context = int(statistics.mean(map(len, prompts))) + MAX_TOKENS // 2
    config = ProfileConfig(num, context, prompt_tokens=256, repeats=4, most_points=20)
    found: dict[str, dict[str, list[float]]] = {name: {"engine": [], "simulated": []} for name in POLICIES}
    names = list(POLICIES)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "sps.json"
        for repeat in range(options.repeats):
            curve = profile(run.target, run.parts, config=config)
            file.write_text(json.dumps(curve.to_json()))
            first = repeat % len(names)
            for name in [*names[first:], *names[:first]]:
                policy = dict(POLICIES[name])
                if policy["type"] != "fixed":
                    policy["curve"] = str(file)
                found[name]["engine"].append(engine_speed(run, policy, prompts, num, options.seconds))
                found[name]["simulated"].append(simulated_speed(run, policy, curve, rounds, prompts, num))
    return [row(num, name, speeds) for name, speeds in found.items()]


def row(num: int, name: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians with quartiles, and how far the simulator is off beside what is allowed."""
    spreads = {kind: records.spread(values) for kind, values in speeds.items()}
    engine, simulated = spreads["engine"], spreads["simulated"]
    apart = (engine["q3"] - engine["q1"]) / engine["median"]
    return {
        "requests": num,
        "policy": name,
        **spreads,
        "off": round(simulated["median"] / engine["median"] - 1, 4),
        "allowed": round(max(ALLOWED, 2 * apart), 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of traffic under each policy")
    parser.add_argument("--note", default="", help="about the machine, for the record: what else ran on it")
    options = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False)
    run = deepspec.load("demo")
    config = EvalConfig(num_prompts=32, max_tokens=MAX_TOKENS, seed=SEED)
    by_task = collect_prompts(config.tasks, run.target, config)
    prompts = [prompt for pair in zip(*by_task.values(), strict=False) for prompt in pair]
    rounds, cells = recorded(run, prompts), []
    for num in CONCURRENCIES:
        for cell in measure_load(run, prompts, rounds, num, options):
            console.print(
                f"{num} requests, {cell['policy']}: engine {cell['engine']['median']:.0f} tokens/s "
                f"({cell['engine']['q1']:.0f}-{cell['engine']['q3']:.0f}), simulated "
                f"{cell['simulated']['median']:.0f}, {100 * cell['off']:+.0f}% of allowed "
                f"{100 * cell['allowed']:.0f}%"
            )
            cells.append(cell)
    lines = records.write(
        "engine-load",
        {
            "setting": "the shipped demo target and drafter, code and prose",
            "cells": cells,
            "note": options.note,
        },
        seed=SEED,
        warm_up="32 steps",
        repeats=f"{options.repeats} of {options.seconds:g} s",
    )
    console.print("\n".join(lines))
    return int(any(abs(cell["off"]) > cell["allowed"] for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
