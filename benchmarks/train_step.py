"""A whole training step: tokens/s, anchors/s, arithmetic and memory, by anchors, vocabulary and options.

    python benchmarks/train_step.py              # steps, memory, options of the draft layers, attention
    python benchmarks/train_step.py --cached     # the peak of a real run at V = 151,936, hidden 2,560

Steps are those of ``deepspec train`` over made-up text and features (as a cache gives them; no target runs),
with our loss and with plain cross-entropy and L1 over materialised logits, interleaved. Nothing is reported
when their gradients differ. A CPU's cores may be shared: the times are the process's own there. Memory is
what the first step adds to weights and text, each in a process of its own; a GPU's is what the allocator
hands out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
import train_attention
from draft_length import measure_machine
from loss import resident_kib
from records import environment, spread, write
from rich.console import Console
from train_cached import measure_cached
from train_step_problem import SEED, Case, gradient_error, make_trainer

from deepspec.environment import device_name
from deepspec.roofline import HARDWARE
from deepspec.train.flops import count_step
from deepspec.train.trainer import Trainer

BASE = Case()
MOST_GIB = 24e9 / 2**30  # that a run from stored features may take
VOCABS, ANCHORS = (2048, 32_000, 151_936), (32, 128, 512)
#: Sizes at which options of the draft layers are compared.
WIDE = {"demo": {}, "wide": {"hidden": 512, "layers": 4}, "eagle3": {"strategy": "eagle3", "layers": 1}}


def step_seconds(trainer: Trainer, number: int) -> float:
    """One optimiser step; on a CPU the process's own time."""
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    began = clock()
    trainer.step(number, measure=True)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


def interleaved(cases: Sequence[Case], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of each case's steps, by turns; the first of each is not counted."""
    trainers = [make_trainer(case, device) for case in cases]
    taken: list[list[float]] = [[] for _ in cases]
    for number in range(1 + repeats):
        for trainer, found in zip(trainers, taken, strict=True):
            found.append(step_seconds(trainer, number))
    return [found[1:] for found in taken]


def peak_flops(device: torch.device) -> float | None:
    """Dense 16-bit operations a second by the data sheet, where it is known."""
    name = device_name(device)
    return next((one.flops for one in HARDWARE.values() if one.name in name), None)


def speeds(case: Case, device: torch.device, options: argparse.Namespace, product: float) -> dict[str, Any]:
    """A row: both losses' step times, and what ours comes to a second."""
    has_eager = case.eager_gib <= options.most_gib
    cases = [case, replace(case, loss="eager")][: 1 + has_eager]
    flops = count_step(make_trainer(case, device)).total
    taken = dict(zip(("ours", "eager"), interleaved(cases, options.repeats, device), strict=False))
    middle, peak = median(taken["ours"]), peak_flops(device)
    row = {
        **shape(case),
        "ms": {name: spread([1e3 * one for one in values]) for name, values in taken.items()},
        "tokens_per_s": round(case.rows * case.length / middle, 1),
        "anchors_per_s": round(case.anchors / middle, 1),
        "step_gigaflops": round(flops / 1e9, 2),
        "gigaflops_per_s": round(flops / middle / 1e9, 2),
        "share_of_product": round(flops / middle / product, 3),
        "mfu": None if peak is None else round(flops / middle / peak, 3),
    }
    if has_eager:
        pairs = zip(taken["ours"], taken["eager"], strict=True)
        row["ours_over_eager"] = spread([one / other for one, other in pairs])
    return row


def shape(case: Case) -> dict[str, Any]:
    """What tells rows of the record apart."""
    names = ("strategy", "vocab", "hidden", "layers", "rows", "length", "anchors")
    return {name: value for name, value in asdict(case).items() if name in names}


def added_mib(case: Case, device: torch.device) -> float:
    """What the first step adds at its peak; on a CPU once a process, since a process's peak never falls."""
    trainer = make_trainer(case, device)
    if device.type == "cpu":
        before = resident_kib("VmRSS")
        trainer.step(0, measure=True)
        return (resident_kib("VmHWM") - before) / 2**10
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.step(0, measure=True)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compile_cost(case: Case, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds on the clock that the first compiled step takes more than a later one, and the steps' ratio."""
    plain, compiled = make_trainer(case, device), make_trainer(replace(case, compiled=True), device)
    step_seconds(plain, 0)
    began = time.perf_counter()
    step_seconds(compiled, 0)
    first, began = time.perf_counter() - began, time.perf_counter()
    step_seconds(compiled, 1)
    later = time.perf_counter() - began
    pairs = [(step_seconds(compiled, 2 + n), step_seconds(plain, 1 + n)) for n in range(repeats)]
    return {
        "compile_s": round(first - later, 1),
        "compiled_over_plain": spread([one / other for one, other in pairs]),
    }


def own_process(what: str, case: Case, repeats: int = 0) -> Any:
    """Measure in a fresh process, with nothing compiled before."""
    command = [sys.executable, __file__, "--one", json.dumps([what, asdict(case), repeats])]
    with tempfile.TemporaryDirectory() as cache:
        told = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
        ran = subprocess.run(command, check=True, capture_output=True, text=True, env=told)
    return json.loads(ran.stdout.splitlines()[-1])


def measure_one(text: str, device: torch.device) -> None:
    """The other end of :func:`own_process`."""
    what, values, repeats = json.loads(text)
    case = Case(**values)
    print(json.dumps(added_mib(case, device) if what == "memory" else compile_cost(case, repeats, device)))


def memory(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """MiB that a step adds with either loss; the plain one is left out where it would take too much."""
    found: dict[str, Any] = {**shape(case), "ours": round(own_process("memory", case), 1)}
    eager = replace(case, loss="eager")
    found["eager"] = round(own_process("memory", eager), 1) if case.eager_gib <= options.most_gib else None
    return found


def layer_options(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Draft layers recomputed, and compiled, against neither."""
    found = []
    for name in options.wide:
        case = Case(**WIDE[name])
        again = replace(case, recomputed=True)
        plain, recomputed = interleaved([case, again], options.repeats, device)
        found.append(
            {
                **shape(case),
                "name": name,
                "plain_ms": spread([1e3 * one for one in plain]),
                "recomputed_over_plain": spread(
                    [one / other for one, other in zip(recomputed, plain, strict=True)]
                ),
                "mib": {"plain": own_process("memory", case), "recomputed": own_process("memory", again)},
                **own_process("compile", case, options.repeats),
            }
        )
    return found


def measure_all(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything but the cached run."""
    console, product = (
        Console(),
        measure_machine(device, torch.float32 if device.type == "cpu" else torch.bfloat16),
    )
    rows, memories = [], []
    for vocab in options.vocabs:
        for anchors in options.anchors:
            case = replace(BASE, vocab=vocab, anchors=anchors)
            if vocab * anchors <= options.most_logits:
                rows.append(speeds(case, device, options, product.flops))
                console.print(rows[-1], soft_wrap=True)
            memories.append(memory(case, options))
            console.print(memories[-1], soft_wrap=True)
    layers = layer_options(options, device)
    console.print(layers, soft_wrap=True)
    attention = {
        "masks": [train_attention.cost(*one) for one in train_attention.SHAPES],
        "compared": [train_attention.compare(512, 64, options.repeats, device)],
    }
    console.print(attention, soft_wrap=True)
    return {
        "product_gigaflops_per_s": round(product.flops / 1e9, 1),
        "rows": rows,
        "memory_mib": memories,
        "layers": layers,
        "attention": attention,
    }


def cached(console: Console) -> int:
    """The peak of a run from stored features, and whether it is allowed."""
    result = measure_cached()
    taken = result["training"]["peak_gib"]
    console.print(f"training took {taken} GiB at its peak; allowed are {MOST_GIB:.1f}", soft_wrap=True)
    lines = write("train-cached", result, seed=SEED, warm_up="none", repeats="one run of two steps")
    console.print("\n".join(lines), soft_wrap=True)
    return int(taken > MOST_GIB)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabs", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--anchors", type=int, nargs="+", default=ANCHORS)
    parser.add_argument("--wide", nargs="*", default=[*WIDE], choices=WIDE, help="sizes for layers' options")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-gib", type=float, default=6.0, help="no eager step that would take more")
    parser.add_argument("--most-logits", type=float, default=2e7, help="no timing of more anchors times V")
    parser.add_argument("--beside", metavar="TEXT", help="what else the machine did, for the record")
    parser.add_argument("--cached", action="store_true", help="train from stored features and take the peak")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    device = torch.device(environment()["device_type"])
    if options.one:
        measure_one(options.one, device)
        return 0
    console = Console()
    if options.cached:
        return cached(console)
    small = Case(anchors=16, rows=2, length=128)
    error = gradient_error(replace(small, loss="eager"), small, device)
    if error > (1e-4 if device.type == "cpu" else 3e-2):
        console.print(f"gradients differ from the plain formula's by {error:.1e}; nothing is reported")
        return 1
    result = {"gradient_error": error, **measure_all(options, device)}
    repeats = f"{options.repeats} interleaved steps; memory and compiling once, in processes of their own"
    if options.beside:
        repeats += f"; {options.beside}"
    lines = write("train-step", result, seed=SEED, warm_up="one step of each", repeats=repeats)
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
