"""The measured bars of decoding: speculative against plain, plain against transformers, batch 32 against 1.

Everything is timed in one process, interleaved, and compared pairwise prompt by prompt; the record holds
medians and quartiles. A miss of a bar is printed and makes the exit code 1; no bar is loosened here.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from records import spread, write
from rich.console import Console
from rich.table import Table

import deepspec
from deepspec import Engine, SamplingParams
from deepspec.config import TargetConfig
from deepspec.data.local_text import stdlib_files
from deepspec.evaluate import measure_acceptance, prompts_for
from deepspec.target.demo import perplexity, token_rows
from deepspec.types import RequestRound, RoundRecord

BARS = {"speculative_over_plain": 1.3, "plain_over_transformers": 0.95, "batch_gain": 5.0, "perplexity": 16.5}


@dataclass(frozen=True)
class Timed:
    """Seconds a token for one prompt."""

    plain: float
    speculative: float
    transformers: float


def seconds_per_token(run: Callable[[], int]) -> float:
    """Wall time of ``run`` over the tokens that it returns the count of."""
    started = time.perf_counter()
    return 1.0 / (run() / (time.perf_counter() - started))


def batch_one(run: Any, prompts: Sequence[Sequence[int]], temperature: float, num_tokens: int) -> dict[str, Any]:
    """Interleaved timings at batch 1 with τ, for one temperature."""
    rounds: list[list[RequestRound]] = []
    observed: list[RequestRound] = []

    def observe(record: RoundRecord) -> None:
        observed.extend(record.requests)

    plain = Engine(run.target, None, max_batch=1)
    speculative = Engine(run.target, run.parts, max_batch=1, observers=[observe])
    reference = reference_model(run.target)
    params = SamplingParams(temperature=temperature, max_tokens=num_tokens, ignore_stop=True)
    timings = []
    for number, prompt in enumerate(prompts):
        observed.clear()
        jobs: dict[str, Callable[[], int]] = {
            "plain": lambda prompt=prompt: len(plain.run([prompt], params)[0].tokens),
            "speculative": lambda prompt=prompt: len(speculative.run([prompt], params)[0].tokens),
            "transformers": lambda prompt=prompt: generate(reference, prompt, temperature, num_tokens),
        }
        names = list(jobs)
        order = names[number % 3 :] + names[: number % 3]
        seconds = {name: seconds_per_token(jobs[name]) for name in order}
        rounds.append(list(observed))
        if number >= 3:  # the first few warm caches and allocators
            timings.append(Timed(**seconds))
    return {
        "temperature": temperature,
        "num_prompts": len(timings),
        "num_tokens": num_tokens,
        "accepted_length": accepted_length(rounds),
        "plain_ms": spread([1e3 * t.plain for t in timings]),
        "speculative_ms": spread([1e3 * t.speculative for t in timings]),
        "transformers_ms": spread([1e3 * t.transformers for t in timings]),
        "speculative_over_plain": spread([t.plain / t.speculative for t in timings]),
        "plain_over_transformers": spread([t.transformers / t.plain for t in timings]),
    }


def accepted_length(rounds: Sequence[Sequence[RequestRound]]) -> dict[str, Any]:
    """τ with its interval."""
    measured = measure_acceptance(rounds)
    return {"mean": measured.accepted_length, "ci95": list(measured.ci95)}


def reference_model(target: Any) -> Any:
    """The same weights under transformers' own attention."""
    import copy

    model = copy.deepcopy(target.model)
    model.set_attn_implementation("sdpa")
    return model


@torch.inference_mode()
def generate(model: Any, prompt: Sequence[int], temperature: float, num_tokens: int) -> int:
    """``generate`` with its cache; returns how many tokens came."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    tokens = torch.tensor([list(prompt)])
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=num_tokens, min_new_tokens=num_tokens, pad_token_id=0, **sampling
    )
    return int(output.shape[1] - tokens.shape[1])


def batch_gain(run: Any, prompts: Sequence[Sequence[int]], batch: int, num_tokens: int) -> dict[str, Any]:
    """Tokens/s of ``batch`` requests together over one after the other, in interleaved blocks of prompts."""
    params = SamplingParams(max_tokens=num_tokens, ignore_stop=True)
    gains: dict[str, list[float]] = {"plain": [], "speculative": []}
    engines = {
        (name, size): Engine(run.target, parts, max_batch=size)
        for name, parts in (("plain", None), ("speculative", run.parts))
        for size in (1, batch)
    }
    for start in range(0, len(prompts) - batch + 1, batch):
        block = prompts[start : start + batch]
        for name in gains:
            few = block[start // batch :: 4]
            alone, together = (
                seconds_per_token(lambda s=size, b=block_: sum(len(c.tokens) for c in engines[name, s].run(b, params)))
                for size, block_ in ((1, few), (batch, block))
            )
            gains[name].append(alone / together)
    return {"batch": batch, **{f"{name}_gain": spread(values) for name, values in gains.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=99)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    run = deepspec.load("demo")
    prompts = prompts_for("stdlib", run.target.tokenizer, options.prompts)
    runs = [batch_one(run, prompts, temperature, options.tokens) for temperature in (1.0, 0.0)]
    held_out = token_rows(run.target.tokenizer, stdlib_files(held_out=True), 512)
    result = {
        "runs": runs,
        "batch": batch_gain(run, (prompts * 2)[: 4 * options.batch], options.batch, options.tokens),
        "held_out_perplexity": perplexity(reference_model(deepspec.load_target(TargetConfig())), held_out),
        "bars": BARS,
    }
    path = write("decoding", result)
    return report(result, str(path))


def report(result: dict[str, Any], path: str) -> int:
    """Print the bars and whether each is met."""
    sampled, batch = result["runs"][0], result["batch"]
    rows = [
        ("speculative / plain, batch 1, T = 1", sampled["speculative_over_plain"]["median"], BARS["speculative_over_plain"], 1),
        ("plain / transformers generate, batch 1", sampled["plain_over_transformers"]["median"], BARS["plain_over_transformers"], 1),
        (f"batch {batch['batch']} / batch 1, plain", batch["plain_gain"]["median"], BARS["batch_gain"], 1),
        (f"batch {batch['batch']} / batch 1, speculative", batch["speculative_gain"]["median"], BARS["batch_gain"], 1),
        ("held-out perplexity", result["held_out_perplexity"], BARS["perplexity"], -1),
    ]
    table = Table("bar", "measured", "allowed", "met")
    missed = 0
    for name, value, allowed, sign in rows:
        met = sign * value >= sign * allowed
        missed += not met
        table.add_row(name, f"{value:.2f}", f"{'≥' if sign > 0 else '≤'} {allowed:g}", "yes" if met else "NO")
    console = Console()
    console.print(table)
    for run in result["runs"]:
        console.print(f"T = {run['temperature']:g}: τ {run['accepted_length']}, speedup {run['speculative_over_plain']}")
    console.print(f"record: {path}")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
