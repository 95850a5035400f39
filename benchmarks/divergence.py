"""Where speculative decoding under the delta rule first leaves plain decoding with the same seed, in float32.

In exact arithmetic it never does. In float32 a row alone and the same row in a batch differ in their last
digits, so a uniform that lies almost on the step of the cumulative distribution between two tokens may fall
on either side. Each divergence must be explained so: the uniform within ``MARGIN`` of both tokens' intervals,
in a forward of that text alone. One that is not explained makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from records import write
from rich.console import Console
from torch import Tensor

import deepspec
from deepspec import Engine, SamplingParams
from deepspec.config import EvalConfig, TargetConfig
from deepspec.evaluate.tasks import collect_prompts
from deepspec.sampling import Stream, request_seed, uniforms
from deepspec.sampling.categorical import BLOCK
from deepspec.strategy import Parts
from deepspec.target import Target, load_target
from deepspec.train.assemble import assemble
from deepspec.types import Span

MARGIN = 1e-4
SEED = 0
TASKS = ("stdlib", "prose")


def delta_demo() -> tuple[Target, Parts]:
    """The demo target and drafter in float32, under the delta rule."""
    run = deepspec.load("demo")
    place = run.target.device
    target = load_target(TargetConfig(dtype="float32"), device=str(place))
    strategy = run.parts.strategy.replace(verifier="delta")
    parts = assemble(strategy, target, device=place, dtype=torch.float32, seed=SEED)
    parts.modules().load_state_dict(run.parts.modules().state_dict())
    return target, parts


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first index at which two texts of one length differ; None when they are equal."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((i for i, (a, b) in pairs if a != b), None)


def margin(weights: Tensor, noise: tuple[float, float], token: int) -> float:
    """How far the two uniforms of a draw from ``weights [V]`` lie outside of those that give ``token``."""
    block, inside = divmod(token, BLOCK)
    blocks = [piece.sum() for piece in weights.split(BLOCK)]
    return max(
        _distance(torch.stack(blocks), block, noise[0]),
        _distance(weights.split(BLOCK)[block], inside, noise[1]),
    )


def _distance(weights: Tensor, index: int, uniform: float) -> float:
    """From ``uniform`` to the interval of ``index`` in the cumulative distribution; 0 inside."""
    steps = weights.cumsum(0) / weights.sum()
    low = float(steps[index - 1]) if index else 0.0
    return max(low - uniform, uniform - float(steps[index]), 0.0)


@torch.inference_mode()
def divergence_margin(target: Target, text: Sequence[int], tokens: Sequence[int], seed: int) -> float:
    """The larger of the margins of the ``tokens`` that two runs drew after ``text``, temperature 1."""
    ids = torch.tensor(text, device=target.device)
    features = target.forward(ids, [Span(0, 0, len(text))], None, ())
    weights = target.logits(features.last_hidden[-1]).double().softmax(dim=-1)
    key = (np.uint64(seed), np.uint64(len(text)), np.uint64(0))
    first, second = map(float, uniforms(*key, Stream.DELTA))
    return max(margin(weights, (first, second), token) for token in tokens)


def measure(
    target: Target, parts: Parts, prompts: Sequence[Sequence[int]], num_tokens: int, batch: int
) -> dict[str, Any]:
    """Decode every prompt twice, and look at each first difference."""
    params = [
        SamplingParams(max_tokens=num_tokens, ignore_stop=True, seed=request_seed(SEED, number))
        for number in range(len(prompts))
    ]
    plain, speculative = (
        [done.tokens for done in Engine(target, used, max_batch=batch).run(prompts, params)]
        for used in (None, parts)
    )
    found, same = [], 0
    for prompt, one, other, param in zip(prompts, plain, speculative, params, strict=True):
        index = first_difference(one, other)
        same += num_tokens if index is None else index
        if index is not None:
            text, tokens = [*prompt, *one[:index]], (one[index], other[index])
            found.append(divergence_margin(target, text, tokens, param.seed or 0))
    return {
        "num_requests": len(prompts),
        "num_tokens": num_tokens,
        "batch": batch,
        "margin": MARGIN,
        "divergences": len(found),
        "explained": sum(one < MARGIN for one in found),
        "largest_margin": max(found, default=0.0),
        "compared_tokens": same + len(found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=640, help="prompts, each taken as often as it takes")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    target, parts = delta_demo()
    config = EvalConfig(num_prompts=options.requests, max_tokens=options.tokens)
    prompts = [one for found in collect_prompts(TASKS, target, config).values() for one in found]
    requests = [*islice(cycle(prompts), options.requests)]
    result = measure(target, parts, requests, options.tokens, options.batch)
    lines = write(
        "divergence",
        result,
        seed=SEED,
        warm_up="none, nothing is timed",
        repeats="each request once plainly and once speculatively",
    )
    console = Console()
    console.print(
        f"{result['divergences']} of {len(requests)} requests diverged, {result['explained']} explained; "
        f"{result['compared_tokens']} tokens compared, largest margin {result['largest_margin']:.1e}"
    )
    console.print("\n".join(lines), soft_wrap=True)
    return int(result["explained"] < result["divergences"])


if __name__ == "__main__":
    sys.exit(main())
