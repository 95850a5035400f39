"""How long a round's verification takes, against what it reads and against the ways that others do it.

Each cell is R requests, G drafted tokens, V tokens in the vocabulary and a type of logits. Ours is measured
under each rule; beside it (a) a batched float32 softmax of p and q, the residual of the refused row and one
multinomial, and (b) the same with the residual of all rows, as serving engines do. Bytes are those a rule has
to read; their share is of the copy bandwidth measured in the same run. Nothing is reported while the rules'
own tests are red. Engines that are installed are named in the record, and not measured yet.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import records
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from deepspec.kernels import backend_for
from deepspec.sampling import SamplingParams, batch_sampling
from deepspec.target.load import resolve_device
from deepspec.types import Draft, TargetRows

REQUESTS, LENGTHS, VOCABULARIES = (1, 8, 32, 128, 512), (3, 7, 15), (32_000, 151_936, 262_144)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
RULES = ("token", "block", "delta")
#: Engines whose verification could stand beside ours, by the module that has it.
PEERS = {"vllm": "vllm", "flashinfer": "flashinfer", "sglang": "sgl_kernel"}
WARM_UP, REPEATS = 3, 9
#: On a CPU the largest [rows, V] table, in elements: some float32 copies of it fit into memory, and seconds.
CPU_ELEMENTS = 2**28
SEED = 0


@dataclass(frozen=True)
class Case:
    """A cell's input: all requests drafted and verify G tokens."""

    target: TargetRows
    draft: Draft
    lengths: Tensor
    accept: Tensor
    residual: Tensor
    delta: Tensor


def make_case(num: int, num_draft: int, vocab: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Random rows that resemble each other as a target and a useful drafter do."""
    generator = torch.Generator(device).manual_seed(SEED)

    def random(*size: int, real: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(size, generator=generator, device=device, dtype=real)

    rows = torch.randn(num, num_draft + 1, vocab, generator=generator, device=device, dtype=dtype).mul_(2)
    stored = rows[:, :-1] + torch.randn(1, 1, vocab, generator=generator, device=device, dtype=dtype)
    stored = stored.contiguous()
    scaled = stored.float()
    sums = scaled.logsumexp(dim=-1)
    tokens = (scaled + -(-random(num, num_draft, 1).clamp(min=1e-9).log()).log()).argmax(dim=-1)
    log_q = scaled.gather(-1, tokens[..., None])[..., 0] - sums
    sampling = batch_sampling([SamplingParams()] * num, vocab, device)
    starts = torch.arange(num, device=device) * (num_draft + 1)
    noise = partial(random, real=torch.float64)
    return Case(
        TargetRows(rows.flatten(0, 1), starts, sampling),
        Draft(tokens, stored, sums, log_q),
        torch.full((num,), num_draft, device=device),
        noise(num, num_draft),
        noise(num, 2),
        noise(num, num_draft + 1, 2),
    )


def materialised(case: Case, *, all_rows: bool) -> tuple[Tensor, Tensor]:
    """What serving engines' fallbacks do: probabilities of all rows, then one multinomial."""
    num, num_draft = case.draft.tokens.shape
    assert case.draft.logits is not None, "drafts of this benchmark have rows"
    p = case.target.logits.float().softmax(dim=-1).view(num, num_draft + 1, -1)
    q = case.draft.logits.float().softmax(dim=-1)
    p_drafted, q_drafted = (x.gather(-1, case.draft.tokens[..., None])[..., 0] for x in (p[:, :-1], q))
    accepted = (case.accept * q_drafted < p_drafted).long().cumprod(dim=1).sum(dim=1)
    requests = torch.arange(num, device=p.device)
    if all_rows:
        weights = torch.cat([(p[:, :-1] - q).clamp(min=0) + 1e-20, p[:, -1:]], dim=1)
        drawn = torch.multinomial(weights.flatten(0, 1), 1).view(num, -1)
        return accepted, drawn[requests, accepted]
    last = accepted.clamp(max=num_draft - 1)
    left = (p[requests, last] - q[requests, last]).clamp(min=0) + 1e-20
    weights = torch.where((accepted < num_draft)[:, None], left, p[requests, accepted])
    return accepted, torch.multinomial(weights, 1)[:, 0]


def ways(case: Case) -> dict[str, Callable[[], object]]:
    """Everything that is timed."""
    backend = backend_for(case.target.logits.device, case.target.logits.dtype)
    arguments = (case.target, case.draft, case.lengths)
    noise = (case.accept, case.residual)
    return {
        "token": partial(backend.token_rule, *arguments, *noise),
        "block": partial(backend.block_rule, *arguments, *noise),
        "delta": partial(backend.delta_rule, *arguments, case.delta),
        "(a)": partial(materialised, case, all_rows=False),
        "(b)": partial(materialised, case, all_rows=True),
    }


def bytes_read(rule: str, case: Case) -> int:
    """What a rule cannot do without: each target row once, and what closes a round.

    The token rule reads a target and a draft row more for each request, the block rule also both rows of the
    tenth that need their residual mass.
    """
    rows, vocab = case.target.logits.shape
    more = {"token": 2 * len(case.lengths), "block": 2 * len(case.lengths) + rows // 5, "delta": 0}
    return (rows + more[rule]) * vocab * case.target.logits.element_size()


def timed(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, list[float]]:
    """Milliseconds of each way, by turns; under a captured CUDA graph on a GPU, where that is possible."""
    ready = {name: (_captured(run) if device.type == "cuda" else run) for name, run in runs.items()}
    for _, run in itertools.product(range(WARM_UP), ready.values()):
        run()
    found: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(REPEATS):
        for name, run in ready.items():
            found[name].append(_milliseconds(run, device))
    return found


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.process_time()  # its cores may be shared with other work
        run()
        return 1e3 * (time.process_time() - began) / torch.get_num_threads()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written each second by a copy of 256 MiB."""
    source = torch.empty(2**26, dtype=torch.float32, device=device).fill_(1)
    target = torch.empty_like(source)
    times = timed({"copy": lambda: target.copy_(source)}, device)["copy"]
    return 2 * source.numel() * 4 / (1e-3 * sorted(times)[len(times) // 2])


def cells(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[int, int, int, str]]:
    """The grid, without what a CPU has no memory or minutes for."""
    grid = itertools.product(options.requests, options.lengths, options.vocabularies, options.dtypes)
    for num, num_draft, vocab, dtype in grid:
        if device.type == "cuda" or num * (num_draft + 1) * vocab <= CPU_ELEMENTS:
            yield num, num_draft, vocab, dtype


def measure(cell: tuple[int, int, int, str], device: torch.device, bandwidth: float) -> dict[str, Any]:
    """One cell's times, and each rule's share of the bandwidth."""
    num, num_draft, vocab, dtype = cell
    case = make_case(num, num_draft, vocab, DTYPES[dtype], device)
    with torch.inference_mode():
        times = timed(ways(case), device)
    spreads = {name: records.spread(values) for name, values in times.items()}
    rules = {
        rule: {
            "ms": spreads[rule],
            "bytes": bytes_read(rule, case),
            "share": round(bytes_read(rule, case) / (1e-3 * spreads[rule]["median"]) / bandwidth, 3),
        }
        for rule in RULES
    }
    others = {name: spreads[name] for name in ("(a)", "(b)")}
    return {"requests": num, "draft_length": num_draft, "vocab": vocab, "dtype": dtype, **rules, **others}


def check_tests() -> None:
    """Exit unless the rules' tests are green."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/kernels"]
    if subprocess.run(command, cwd=records.ROOT, capture_output=True, check=False).returncode:
        raise SystemExit("tests/kernels is red; a time of rules that are wrong is none. Nothing was measured")


def show(rows: list[dict[str, Any]]) -> Table:
    table = Table("R", "G", "V", "type", *(f"{rule} ms" for rule in RULES), "(a)", "(b)", "token share")
    for row in rows:
        cell = (str(row[key]) for key in ("requests", "draft_length", "vocab", "dtype"))
        ours = (f"{row[rule]['ms']['median']:.3g}" for rule in RULES)
        others = (f"{row[name]['median']:.3g}" for name in ("(a)", "(b)"))
        table.add_row(*cell, *ours, *others, f"{row['token']['share']:.0%}")
    return table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=REQUESTS)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=tuple(DTYPES))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options, device = parse(arguments), resolve_device(None)
    check_tests()
    bandwidth = copy_bandwidth(device)
    rows = []
    for cell in cells(options, device):
        rows.append(measure(cell, device, bandwidth))
        print(*cell, flush=True)
    installed = {name: find_spec(module) is not None for name, module in PEERS.items()}
    backend = {name: backend_for(device, dtype).name for name, dtype in DTYPES.items()}
    result = {
        "copy_bandwidth": round(bandwidth),
        "backend": backend,
        "installed_peers": installed,
        "cells": rows,
    }
    lines = records.write(
        "verify-kernel",
        result,
        seed=SEED,
        warm_up=f"{WARM_UP} rounds",
        repeats=f"{REPEATS} rounds of each way, by turns",
    )
    console = Console()
    console.print(show(rows))
    console.print("\n".join(lines), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
