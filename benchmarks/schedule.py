"""How long the prefix scheduler takes, and what share of the demo's round scheduling and calibrating are.

Each cell is R requests of G drafted tokens, survival as a useful drafter's, on a curve with a cliff. On a CPU
it is plain torch's version; on a GPU also that of Triton, alone and under a captured graph. Then every
shipped calibrator and policy at the first R and G, as the engine calls them. The round is the demo's at that
R, drafting and verifying everything, in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import records
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import deepspec
from deepspec import Engine, SamplingParams
from deepspec.curves import DraftCost, SpsCurve
from deepspec.data import encode_prompt
from deepspec.interfaces import Calibrator, LengthPolicy, OnlineCalibrator, SeenRounds
from deepspec.kernels import schedule
from deepspec.plugins import create_plugin_manager, part_names, resolve_part
from deepspec.rounds import CalibrationRounds
from deepspec.runs import Run
from deepspec.target.load import resolve_device
from deepspec.types import Load, RoundRecord

REQUESTS, LENGTHS = (64, 256), (7, 16)
WARM_UP, REPEATS, CALLS = 20, 15, 50
SEED = 0
#: What scheduling and calibrating may take of a round at 64 requests.
ALLOWED_SHARE = {"cpu": 0.03, "cuda": 0.01}


def make_case(num: int, num_draft: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Survival ``[R, G]``, draft lengths, and a curve whose steps grow slower and slow down at 3 R tokens."""
    generator = torch.Generator().manual_seed(SEED)
    conditional = 0.5 + 0.5 * torch.rand(num, num_draft, generator=generator)
    tokens = torch.arange(1, num * (1 + num_draft) + 1, dtype=torch.float64)
    curve = 100 / (1 + tokens / (4 * num) + 0.2 * (tokens > 3 * num))
    drafted = torch.full((num,), num_draft)
    return conditional.cumprod(dim=1).to(device), drafted.to(device), curve.to(device)


def times_us(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Median and quartiles of one call, over ``REPEATS`` means of ``CALLS`` calls."""
    for _ in range(WARM_UP):
        run()
    found = []
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        for _ in range(CALLS):
            run()
        _wait(device)
        found.append(1e6 * (time.perf_counter() - started) / CALLS)
    return records.spread(found)


def by_kernel(case: tuple[Tensor, Tensor, Tensor]) -> dict[str, dict[str, float]]:
    """Triton's version, launched and replayed; raises RuntimeError when it decides otherwise than torch's."""
    from deepspec.kernels import triton_schedule

    survival, device = case[0], case[0].device
    room = triton_schedule.ScheduleWorkspace.allocate(*survival.shape, device)

    def run() -> Tensor:
        return triton_schedule.prefix_lengths(*case, workspace=room)

    if not torch.equal(run(), schedule.prefix_lengths(*case)):
        raise RuntimeError("the kernels' lengths are not plain torch's; run the tests before timing them")
    launched = times_us(run, device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return {"triton_us": launched, "triton_graph_us": times_us(graph.replay, device)}


def demo_round_ms(run: Run, num: int) -> dict[str, float]:
    """A round of the demo with ``num`` requests that all decode, median and quartiles."""
    found: list[float] = []

    def observe(record: RoundRecord) -> None:
        if len(record.requests) == num and record.prefill_tokens == 0:
            found.append(record.draft_ms + record.verify_ms + record.other_ms)

    engine = Engine(run.target, run.parts, max_batch=num, observers=[observe])
    prompt = encode_prompt(run.target.tokenizer, "import os\n")
    params = [SamplingParams(max_tokens=48, seed=i, ignore_stop=True) for i in range(num)]
    engine.run([prompt] * num, params)
    return records.spread(found)


def parts_us(run: Run, num: int, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """What each calibrator and each policy takes of a round of R requests; learning from it is counted."""
    survival, drafted, curve = make_case(num, LENGTHS[0], device)
    counts = torch.full((num,), LENGTHS[0]).numpy()
    rounds = CalibrationRounds.from_counts(survival.cpu().double().logit(1e-6).numpy(), counts, counts // 2)
    context, found = run.parts.drafter.context, create_plugin_manager()
    past = tuple(survival.mean(dim=0).tolist())
    load = Load(
        num,
        0,
        curve,
        past_survival=past,
        past_verified=(1.0,) * len(past),
        past_accepted=past,
        earlier_survival=survival,
    )
    steps = SpsCurve(
        verify_tokens=tuple(range(1, len(curve) + 1)),
        steps_per_s=tuple(curve.tolist()),
        draft=DraftCost(seconds=1e-3),
    )
    taken: dict[str, dict[str, dict[str, float]]] = {"calibrator": {}, "policy": {}}
    for name in part_names(found, "calibrator"):
        part = resolve_part(found, "calibrator", name)
        options = part(part.Config(), context).fit(rounds) or {}
        calibrator = part(part.Config.model_validate(options), context)
        taken["calibrator"][name] = times_us(partial(calibrate, calibrator, survival.logit(1e-6)), device)
    for name in part_names(found, "policy"):
        part = resolve_part(found, "policy", name)
        policy = part(part.Config(), context)
        policy.curve = steps if policy.needs_curve else None
        taken["policy"][name] = times_us(partial(schedule_round, policy, survival, drafted, load), device)
    return taken


def calibrate(calibrator: Calibrator, confidence: Tensor) -> None:
    """What an engine asks of a calibrator in a round."""
    if not isinstance(calibrator, OnlineCalibrator):
        calibrator.conditional(confidence)
        return
    num, length = confidence.shape
    classes = torch.zeros(num, dtype=torch.int64, device=confidence.device)
    calibrator.conditional(confidence, classes)
    calibrator.observe(SeenRounds(confidence, torch.full_like(classes, length), classes + 1, classes))


def schedule_round(policy: LengthPolicy, survival: Tensor, drafted: Tensor, load: Load) -> None:
    """What an engine asks of a policy in a round."""
    policy.draft_length(load)
    policy.lengths(survival, drafted, load)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(device: torch.device) -> dict[str, Any]:
    """Every cell, and the share of a round at the first R."""
    cells = []
    for num, num_draft in itertools.product(REQUESTS, LENGTHS):
        case = make_case(num, num_draft, device)
        admitted = int(schedule.prefix_lengths(*case).sum())
        cell: dict[str, Any] = {"requests": num, "draft_length": num_draft, "admitted": admitted}
        cell["torch_us"] = times_us(lambda case=case: schedule.prefix_lengths(*case), device)
        cells.append(cell | (by_kernel(case) if device.type == "cuda" else {}))
    run = deepspec.load("demo")
    round_ms = demo_round_ms(run, REQUESTS[0])
    parts = parts_us(run, REQUESTS[0], device)
    slowest = sum(max(one["median"] for one in taken.values()) for taken in parts.values())
    share = slowest / (1e3 * round_ms["median"])
    on_gpu = "measured" if device.type == "cuda" else "not measured on a GPU"
    return {
        "cells": cells,
        "parts": parts,
        "round_ms": round_ms,
        "share_of_round": round(share, 5),
        "triton": on_gpu,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--note", default="", help="about the machine, for the record: what else ran on it")
    options = parser.parse_args()
    console = Console(highlight=False)
    device = resolve_device(None)
    result = {**measure(device), "note": options.note}
    table = Table("R", "G", "admitted", *(name for name in result["cells"][0] if name.endswith("_us")))
    for cell in result["cells"]:
        medians = [f"{value['median']:.1f}" for name, value in cell.items() if name.endswith("_us")]
        table.add_row(*(str(cell[name]) for name in ("requests", "draft_length", "admitted")), *medians)
    console.print(table)
    for kind, taken in result["parts"].items():
        each = (f"{name} {one['median']:.0f}" for name, one in taken.items())
        console.print(f"{kind}, us: {', '.join(each)}")
    console.print(
        f"a round of the demo at R = {REQUESTS[0]}: {result['round_ms']['median']:.1f} ms; the slowest "
        f"calibrator and policy are {100 * result['share_of_round']:.2f} % of it; Triton: {result['triton']}"
    )
    for line in records.write(
        "schedule", result, seed=SEED, warm_up=f"{WARM_UP} calls", repeats=f"{REPEATS} of {CALLS} calls"
    ):
        console.print(line)
    return int(result["share_of_round"] > ALLOWED_SHARE[device.type])


if __name__ == "__main__":
    raise SystemExit(main())
