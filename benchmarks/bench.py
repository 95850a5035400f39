"""The measured bars of decoding: speculative against plain, plain against transformers, batch 32 against 1.

Everything is timed in one process, interleaved, and compared pairwise prompt by prompt; the record holds
medians and quartiles. A missed bar is printed and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from records import spread, write
from rich.console import Console
from rich.table import Table

import deepspec
from deepspec import Engine, SamplingParams
from deepspec.cli.results import interval
from deepspec.config import EvalConfig, TargetConfig
from deepspec.data.local_text import stdlib_files
from deepspec.evaluate import measure_acceptance
from deepspec.evaluate.decoding import decode_rounds
from deepspec.evaluate.speed import WARM_UP_TOKENS, measure_speed
from deepspec.evaluate.tasks import collect_prompts
from deepspec.runs import Run
from deepspec.target.demo import held_out_perplexity

BARS = {
    "speculative_over_plain": 1.3,
    "plain_over_transformers": 0.95,
    "batch_gain": 5.0,
    "perplexity": 16.5,
}
Prompts = Sequence[Sequence[int]]


def batch_one(run: Run, prompts: Prompts, temperature: float, num_tokens: int) -> dict[str, Any]:
    """Interleaved timings at batch 1, and τ over the same prompts, for one temperature."""
    params = SamplingParams(temperature=temperature, max_tokens=num_tokens)
    [speed] = measure_speed(run.target, [run.parts], prompts, params, against_transformers=True)
    config = EvalConfig(temperature=temperature, max_tokens=num_tokens, batch=32)
    rounds = decode_rounds(run.target, run.parts, prompts, config)
    measured = measure_acceptance(rounds, draft_length=run.parts.strategy.draft_length)
    tau = measured.accepted_length
    if tau is None:
        raise SystemExit("no round was decoded; raise --tokens")
    seconds = speed.seconds
    return {
        "temperature": temperature,
        "num_prompts": len(prompts),
        "num_tokens": num_tokens,
        "accepted_length": {"mean": tau.mean, "ci95": [tau.low, tau.high]},
        "conditional_acceptance": list(measured.rates.conditional),
        "draft_ms": speed.draft_ms,
        "verify_ms": speed.verify_ms,
        "target_ms": speed.target_ms,
        "ms_per_token": {
            name: spread([1e3 * t / num_tokens for t in found]) for name, found in seconds.items()
        },
        "speculative_over_plain": paired(seconds["plain"], seconds["speculative"]),
        "plain_over_transformers": paired(seconds["transformers"], seconds["plain"]),
    }


def paired(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times faster, prompt by prompt."""
    return spread([a / b for a, b in zip(slow, fast, strict=True)])


def batch_gain(run: Run, prompts: Prompts, batch: int, num_tokens: int) -> dict[str, Any]:
    """Tokens/s of ``batch`` requests together over the same engine's one by one, in interleaved blocks.

    Outputs are about as long as the prompts, or reading ``batch`` prompts, which gains nothing from a batch,
    would outweigh decoding.
    """
    params = SamplingParams(max_tokens=num_tokens, ignore_stop=True)
    gains: dict[str, list[float]] = {"plain": [], "speculative": []}
    for start in range(0, len(prompts) - batch + 1, batch):
        block = prompts[start : start + batch]
        for name, parts in (("plain", None), ("speculative", run.parts)):
            alone, together = (Engine(run.target, parts, max_batch=size) for size in (1, batch))
            one = tokens_per_second(alone, block[:: batch // 4], params)
            gains[name].append(tokens_per_second(together, block, params) / one)
    return {
        "batch": batch,
        "num_tokens": num_tokens,
        **{f"{name}_gain": spread(values) for name, values in gains.items()},
    }


def tokens_per_second(engine: Engine, prompts: Prompts, params: SamplingParams) -> float:
    """Over whole requests, prompts included, after one short request that warms up."""
    engine.run(prompts[:1], SamplingParams(max_tokens=WARM_UP_TOKENS))
    started = time.perf_counter()
    done = engine.run(prompts, params)
    return sum(len(c.tokens) for c in done) / (time.perf_counter() - started)


def report(result: dict[str, Any], lines: Sequence[str]) -> int:
    """Print the bars and whether each is met, then ``lines``."""
    sampled, batch = result["runs"][0], result["batch"]
    rows = [
        ("speculative / plain", sampled["speculative_over_plain"]["median"], "speculative_over_plain", 1),
        ("plain / transformers", sampled["plain_over_transformers"]["median"], "plain_over_transformers", 1),
        (f"batch {batch['batch']} / 1, plain", batch["plain_gain"]["median"], "batch_gain", 1),
        (f"batch {batch['batch']} / 1, speculative", batch["speculative_gain"]["median"], "batch_gain", 1),
        ("held-out perplexity", result["held_out_perplexity"], "perplexity", -1),
    ]
    table = Table("bar", "measured", "allowed", "met")
    missed = 0
    for name, value, bar, sign in rows:
        met = sign * value >= sign * BARS[bar]
        missed += not met
        allowed = f"{'≥' if sign > 0 else '≤'} {BARS[bar]:g}"
        table.add_row(name, f"{value:.2f}", allowed, "yes" if met else "NO")
    console = Console()
    console.print(table)
    for run in result["runs"]:
        console.print(f"temperature {run['temperature']:g}: τ {interval(run['accepted_length'])}")
    console.print("\n".join(lines), soft_wrap=True)
    return int(missed > 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=99)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=160)
    options = parser.parse_args()
    run = deepspec.load("demo")
    config = EvalConfig(num_prompts=max(options.prompts, 5 * options.batch), max_tokens=options.batch_tokens)
    prompts = collect_prompts(["stdlib"], run.target, config)["stdlib"]
    result = {
        "runs": [batch_one(run, prompts[: options.prompts], t, options.tokens) for t in (1.0, 0.0)],
        "batch": batch_gain(run, prompts[: 4 * options.batch], options.batch, options.batch_tokens),
        "held_out_perplexity": held_out_perplexity(deepspec.load_target(TargetConfig()), stdlib_files(True)),
        "bars": BARS,
    }
    lines = write(
        "decoding",
        result,
        seed=config.seed,
        warm_up=f"one request of {WARM_UP_TOKENS} tokens a contender",
        repeats=f"{options.prompts} prompts at batch 1, 4 blocks of {options.batch}, in turns",
    )
    return report(result, lines)


if __name__ == "__main__":
    sys.exit(main())
