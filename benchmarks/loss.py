"""Time and peak memory of the objective, forward and backward, against the plain formula in autograd.

DSpark's terms (cross-entropy, L1, confidence) over random weights, with a Markov latent; ``plain`` is a
frozen readout, ``capped`` a trained one with a soft-cap. Times interleave both in one process, so that a
busy machine slows both; on a CPU, set OMP_NUM_THREADS=1 and they are the process's own. Memory is what a run
adds, inputs and weights made before: on a CPU the peak of the resident set in a process of its own, on a GPU
what the allocator hands out. Eager is not run where its logits fill too much; its memory is then a straight
line through two measured sizes, marked so. Nothing is reported when the gradients differ.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from records import environment, spread, write
from rich.console import Console
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from deepspec.interfaces import HeadStep, Readout
from deepspec.kernels import loss_backend_for
from deepspec.train.objective import BlockObjective, chunk_rows
from deepspec.train.output_weights import OutputWeights
from deepspec.train.position_weights import DecayWeights
from deepspec.train.terms import ConfidenceEntropy, CrossEntropy, L1Distance
from deepspec.types import AnchorBlocks, Features

SEED, G, SOFTCAP, DECAY = 0, 7, 30.0, 4.0
VOCABS, HIDDEN, ANCHORS = (4096, 32_000, 151_936), (128, 2560), (64, 128, 512)
RANKS = {128: 64, 2560: 256}
#: A CPU's cores may be shared with other work; the process's own time is what it took of them.
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
VARIANTS = ("plain", "capped")
#: Tensors of all logits that eager holds at its peak, about: decides alone what is not tried.
EAGER_TENSORS = 10


@dataclass(frozen=True)
class Case:
    vocab: int
    hidden: int
    anchors: int
    variant: str

    @property
    def gigaflops(self) -> float:
        """Of one product over all slots."""
        return 2e-9 * self.anchors * G * self.vocab * self.hidden

    @property
    def eager_gib(self) -> float:
        return EAGER_TENSORS * 4 * self.anchors * G * self.vocab / 2**30


class Problem:
    """Random inputs of a case, in float32 on a CPU, in bfloat16 (draft and target alike) on a GPU."""

    def __init__(self, case: Case, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(SEED)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=dtype).mul_(scale)

        num, rank, is_capped = case.anchors, RANKS[case.hidden], case.variant == "capped"
        self.softcap = SOFTCAP if is_capped else None
        self.weight = random(case.vocab, case.hidden, scale=2 * case.hidden**-0.5).requires_grad_(is_capped)
        self.output = random(case.vocab, rank, scale=rank**-0.5).requires_grad_()
        self.head = random(case.vocab, case.hidden, scale=2 * case.hidden**-0.5)
        self.hidden = random(num, G, case.hidden).requires_grad_()
        self.latent = random(num, G, rank).requires_grad_()
        self.confidence = random(num, G).requires_grad_()
        labels = torch.randint(case.vocab, (num, G), generator=generator, device=device)
        places = torch.arange(num, device=device)
        valid = torch.ones(num, G, dtype=torch.bool, device=device)
        self.anchors = AnchorBlocks(torch.zeros_like(places), places, labels, labels, valid)
        self.features = Features(random(1, num + G, 0), random(1, num + G, case.hidden))

    def gradients(self) -> list[Tensor]:
        """Of all that learns; they are taken away."""
        found = []
        for leaf in (self.hidden, self.latent, self.confidence, self.output, self.weight):
            if leaf.grad is not None:
                found.append(leaf.grad)
                leaf.grad = None
        return found

    def eager(self) -> None:
        """The formula as one writes it."""
        places = self.anchors.columns[:, None] + torch.arange(G, device=self.hidden.device)
        with torch.no_grad():
            p = linear(self.features.last_hidden[0][places.flatten()], self.head).float().softmax(-1)
        logits = linear(self.hidden.flatten(0, 1), self.weight)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        logits = (logits + linear(self.latent.flatten(0, 1), self.output)).float()
        log_q = logits.log_softmax(-1)
        cross_entropy = -log_q.gather(1, self.anchors.labels.view(-1, 1))[:, 0]
        distance = (log_q.exp() - p).abs().sum(-1)
        accepted = 1 - distance.detach() / 2
        confidence = self.confidence.flatten().float()
        entropy = binary_cross_entropy_with_logits(confidence, accepted, reduction="none")
        weights = torch.exp(-torch.arange(G, device=logits.device) / DECAY).repeat(len(self.confidence))
        loss = (0.1 * cross_entropy + 0.9 * distance + entropy) * weights
        (loss.sum() / weights.sum()).backward()

    def ours(self) -> None:
        terms = [(CrossEntropy(), 0.1), (L1Distance(), 0.9), (ConfidenceEntropy(), 1.0)]
        objective = BlockObjective(
            terms, DecayWeights(DECAY), target_logits=lambda states: linear(states, self.head)
        )
        readout = Readout(self.weight, self.softcap, None, self.weight.requires_grad)
        objective.learn(
            self.hidden,
            HeadStep(self.latent, self.confidence),
            OutputWeights(readout, self.output),
            features=self.features,
            anchors=self.anchors,
            total_weight=objective.total_weight(self.anchors.valid),
        )


def check_gradients(device: torch.device) -> float:
    """The largest relative difference of any gradient on a small case."""
    worst = 0.0
    for variant in VARIANTS:
        problem = Problem(Case(4096, 128, 64, variant), device)
        problem.eager()
        expected = problem.gradients()
        problem.ours()
        for one, other in zip(expected, problem.gradients(), strict=True):
            worst = max(worst, float((other.float() - one.float()).norm() / one.float().norm()))
    return worst


def seconds(run: Callable[[], None], problem: Problem) -> float:
    """One pass, gradients thrown away."""
    clock = CLOCKS[problem.hidden.device.type]
    begin = clock()
    run()
    if problem.hidden.is_cuda:
        torch.cuda.synchronize()
    taken = clock() - begin
    problem.gradients()
    return taken


def measure_time(case: Case, device: torch.device, repeats: int, *, with_eager: bool) -> dict[str, Any]:
    """Milliseconds of both, and the paired ratio ours / eager; the first pair is not counted."""
    problem = Problem(case, device)
    runs = {"eager": problem.eager, "ours": problem.ours} if with_eager else {"ours": problem.ours}
    taken = [{name: seconds(run, problem) for name, run in runs.items()} for _ in range(1 + repeats)][1:]
    found: dict[str, Any] = {name: spread([1e3 * one[name] for one in taken]) for name in runs}
    if with_eager:
        found["ours_over_eager"] = spread([one["ours"] / one["eager"] for one in taken])
    return found


def added_mib(case: Case, name: str, device: torch.device) -> float:
    """What one pass adds at its peak; on a CPU once a process, since a process's peak never falls."""
    problem = Problem(case, device)
    if device.type == "cpu":
        before = resident_kib("VmRSS")
        getattr(problem, name)()
        return (resident_kib("VmHWM") - before) / 2**10
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    getattr(problem, name)()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def resident_kib(field: str) -> int:
    """VmRSS, the resident set now, or VmHWM, its peak; ru_maxrss would count the parent process in."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])


def in_own_process(case: Case, name: str) -> float:
    command = [sys.executable, __file__, "--one", json.dumps([asdict(case), name])]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(ran.stdout)


def measure_memory(case: Case, most_gib: float) -> dict[str, Any]:
    """MiB that each adds, eager's by a straight line through the first two sizes where it is too large."""
    found: dict[str, Any] = {"ours": round(in_own_process(case, "ours"), 1)}
    if case.eager_gib <= most_gib:
        return found | {"eager": round(in_own_process(case, "eager"), 1), "eager_is_scaled": False}
    low, high = (in_own_process(replace(case, anchors=n), "eager") for n in ANCHORS[:2])
    slope = (high - low) / (ANCHORS[1] - ANCHORS[0])
    scaled = high + slope * (case.anchors - ANCHORS[1])
    return found | {"eager": round(scaled, 1), "eager_is_scaled": True}


def measure_all(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row of each case; what was left out says so."""
    for shape in itertools.product(options.vocabs, options.hidden, options.anchors, VARIANTS):
        case = Case(*shape)
        row: dict[str, Any] = {**asdict(case), "rank": RANKS[case.hidden], "left_out": []}
        has_eager = case.eager_gib <= options.most_gib
        if case.gigaflops > options.most_gigaflops:
            row["left_out"].append("time")
        else:
            row["left_out"] += [] if has_eager else ["eager's time"]
            row["time_ms"] = measure_time(case, device, options.repeats, with_eager=has_eager)
        if case.vocab == VOCABS[-1] and case.anchors == ANCHORS[-1]:
            if case.gigaflops > options.most_memory_gigaflops:
                row["left_out"].append("memory")
            else:
                row["memory_mib"] = measure_memory(case, options.most_gib)
        yield row


def line(row: dict[str, Any]) -> str:
    name = (
        f"V {row['vocab']:>6}, hidden {row['hidden']:>4}, {row['anchors']:>3} anchors, {row['variant']:<6}:"
    )
    parts = []
    for who, value in row.get("time_ms", {}).items():
        unit = "" if who == "ours_over_eager" else " ms"
        parts.append(f"{who} {value['median']:.4g}{unit} ({value['q1']:.4g} to {value['q3']:.4g})")
    if memory := row.get("memory_mib"):
        mark = " (scaled)" if memory["eager_is_scaled"] else ""
        parts.append(f"adds {memory['ours']:.0f} MiB, eager {memory['eager']:.0f}{mark}")
    left = f"left out: {', '.join(row['left_out'])}" if row["left_out"] else ""
    return " ".join([name, "; ".join([*parts, *([left] if left else [])])])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocabs", type=int, nargs="+", default=VOCABS)
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN, choices=HIDDEN)
    parser.add_argument("--anchors", type=int, nargs="+", default=ANCHORS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-gib", type=float, default=6.0, help="no eager run that would take more")
    parser.add_argument("--most-gigaflops", type=float, default=350.0, help="no timing of larger products")
    parser.add_argument("--most-memory-gigaflops", type=float, default=3000.0, help="no peak of larger ones")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(environment()["device_type"])
    if options.one:
        case, name = json.loads(options.one)
        print(added_mib(Case(**case), name, device))
        return 0
    console, error = Console(), check_gradients(device)
    tolerance = 1e-4 if device.type == "cpu" else 3e-2  # float32 sums, and products of bfloat16
    if error > tolerance:
        console.print(f"gradients differ from eager's by {error:.1e}; nothing is reported")
        return 1
    rows = []
    for row in measure_all(options, device):
        rows.append(row)
        console.print(line(row), soft_wrap=True)
    result = {
        "backend": loss_backend_for(device).name,
        "chunk_rows": {str(vocab): chunk_rows(vocab, device) for vocab in options.vocabs},
        "draft_length": G,
        "gradient_error": error,
        "clock": "the process's CPU time" if device.type == "cpu" else "wall",
        "memory": "VmHWM after less VmRSS before, one process each" if device.type == "cpu" else "allocator",
        "rows": rows,
    }
    repeats = f"{options.repeats} interleaved pairs in one process; memory once"
    lines = write("loss", result, seed=SEED, warm_up="one pair", repeats=repeats)
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
