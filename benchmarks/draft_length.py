"""What drafting more tokens costs: a round of the demo target at G = 4 to 16 drafted tokens.

DSpark drafts, untrained: how long a round takes does not depend on what its weights are. Engines of every G
take their steps by turns, so that a busy machine slows all alike; everything that is drafted is verified.
Drafting and verification are timed apart, since a length policy may verify less than is drafted: the share
that drafting 16 instead of 4 adds is of the round at 4.

Beside each stands a model: the larger of arithmetic (a product's measured rate) and weights read (a copy's
measured bandwidth), for the draft block, the G steps of the head, and the target's R (1 + G) rows with LM
head. It leaves out attention, sampling, verification and whatever the host does.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import records
import torch
from rich.console import Console
from rich.table import Table
from verify_kernel import copy_bandwidth

import deepspec
from deepspec import Engine, SamplingParams, Strategy
from deepspec.data import encode_prompt
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.types import RoundRecord

REQUESTS, LENGTHS = (1, 32, 128), (4, 8, 12, 16)
WARM_UP, SEED, STRATEGY = 2, 0, "dspark"
#: Of a round at batch 128, for 16 drafted tokens instead of 4 (DSpark, 2607.05147), on GPUs.
PUBLISHED_SHARE = (0.002, 0.013)
_PRODUCT = 1024


@dataclass(frozen=True)
class Machine:
    """Multiply-adds a second, counted as two operations, and bytes a second."""

    flops: float
    bandwidth: float

    def ms(self, rows: int, weights: int, itemsize: int) -> float:
        """Of a product of so many rows with so many weights: arithmetic or reading them, whichever lasts."""
        return 1e3 * max(2 * rows * weights / self.flops, weights * itemsize / self.bandwidth)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Rates of a square product and of a copy."""
    left, right = (torch.randn(_PRODUCT, _PRODUCT, device=device).to(dtype) for _ in range(2))
    taken = []
    for _ in range(12):
        _wait(device)
        began = time.perf_counter()
        left @ right
        _wait(device)
        taken.append(time.perf_counter() - began)
    return Machine(2 * _PRODUCT**3 / median(taken[2:]), copy_bandwidth(device))


def modelled(machine: Machine, target: Target, parts: Parts, num: int, num_draft: int) -> dict[str, float]:
    """Milliseconds of drafting and of verification by the model above."""
    itemsize = target.info.lm_head.element_size()
    head = target.info.lm_head.numel()
    block = sum(weight.numel() for weight in parts.drafter.parameters())
    correction = parts.head.output_weight
    steps = num_draft * machine.ms(num, 0 if correction is None else correction.numel(), itemsize)
    body = sum(weight.numel() for weight in target.model.parameters()) - head
    drafted, verified = num * num_draft, num * (1 + num_draft)
    return {
        "draft_ms": machine.ms(drafted, block, itemsize) + machine.ms(drafted, head, itemsize) + steps,
        "verify_ms": machine.ms(verified, body, itemsize) + machine.ms(verified, head, itemsize),
    }


class Rounds:
    """An engine of one draft length whose requests all decode, step by step."""

    def __init__(self, target: Target, parts: Parts, num: int, num_rounds: int) -> None:
        self._found: list[RoundRecord] = []
        self._num = num
        self._engine = Engine(target, parts, max_batch=num, observers=[self._found.append])
        prompt = encode_prompt(target.tokenizer, "import os\n")
        most = num_rounds * (1 + parts.drafter.context.draft_length)
        for i in range(num):
            self._engine.submit(prompt, SamplingParams(max_tokens=most, seed=i, ignore_stop=True))
        while not any(self._is_whole(one) for one in self._found):
            self._engine.step()
        self._found.clear()

    def step(self) -> None:
        """One round of all requests."""
        self._engine.step()

    def times(self) -> dict[str, list[float]]:
        """Milliseconds of each round after the warm-up; extending the drafter counts as drafting."""
        whole = [one for one in self._found[WARM_UP:] if self._is_whole(one)]
        return {
            "draft_ms": [one.draft_ms for one in whole],
            "verify_ms": [one.verify_ms for one in whole],
            "round_ms": [one.draft_ms + one.verify_ms + one.other_ms for one in whole],
        }

    def _is_whole(self, one: RoundRecord) -> bool:
        return len(one.requests) == self._num and one.prefill_tokens == 0


def measure(
    target: Target, requests: Sequence[int], lengths: Sequence[int], num_rounds: int
) -> dict[str, Any]:
    """Every cell, measured and modelled, and what the longest drafts add to the shortest's round."""
    machine = measure_machine(target.device, target.dtype)
    cells, added = [], []
    for num in requests:
        built = {
            length: Strategy.named(STRATEGY).replace(draft_length=length).build(target.info)
            for length in lengths
        }
        engines = {
            length: Rounds(target, parts, num, WARM_UP + num_rounds + 2) for length, parts in built.items()
        }
        for _, engine in itertools.product(range(WARM_UP + num_rounds), engines.values()):
            engine.step()
        found = {length: engine.times() for length, engine in engines.items()}
        for length, times in found.items():
            model = modelled(machine, target, built[length], num, length)
            spreads = {name: records.spread(values) for name, values in times.items()}
            cells.append({"requests": num, "draft_length": length, **spreads, "model": model})
        added.append(_added(num, found[lengths[0]], found[lengths[-1]]))
    return {
        "strategy": f"{STRATEGY}, untrained",
        "machine": {"flops": round(machine.flops), "bandwidth": round(machine.bandwidth)},
        "cells": cells,
        "lengths_compared": [lengths[0], lengths[-1]],
        "added": added,
        "published_share_at_128": PUBLISHED_SHARE,
    }


def _added(num: int, short: dict[str, list[float]], long: dict[str, list[float]]) -> dict[str, Any]:
    """What drafting, and what the whole round, takes more, as shares of the short round, turn by turn."""
    whole = median(short["round_ms"])
    shares = {
        name: records.spread([(b - a) / whole for a, b in zip(short[key], long[key], strict=False)])
        for name, key in (("drafting", "draft_ms"), ("round", "round_ms"))
    }
    return {"requests": num, **shares}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def show(result: dict[str, Any]) -> Table:
    table = Table("R", "G", "draft ms (model)", "verify ms (model)", "round ms")
    for cell in result["cells"]:
        both = (
            f"{cell[name]['median']:.2f} ({cell['model'][name]:.2f})" for name in ("draft_ms", "verify_ms")
        )
        whole = "{median:.2f} ({q1:.2f}-{q3:.2f})".format(**cell["round_ms"])
        table.add_row(str(cell["requests"]), str(cell["draft_length"]), *both, whole)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=REQUESTS)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    result = measure(deepspec.load("demo").target, options.requests, options.lengths, options.rounds)
    console = Console(highlight=False)
    console.print(show(result))
    for one in result["added"]:
        console.print(
            f"R = {one['requests']}: drafting {options.lengths[-1]} instead of {options.lengths[0]} adds "
            f"{100 * one['drafting']['median']:.1f} % of a round, verifying them all, too, "
            f"{100 * one['round']['median']:.1f} %"
        )
    console.print(
        f"published, on GPUs at batch 128: {100 * PUBLISHED_SHARE[0]:g} to {100 * PUBLISHED_SHARE[1]:g} %"
    )
    repeats = f"{options.rounds} rounds of each length, by turns"
    lines = records.write("draft-length", result, seed=SEED, warm_up=f"{WARM_UP} rounds", repeats=repeats)
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
