"""Decodes prompts in batch and keeps what each round was; evaluations, live ones as well, measure by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepspec.config import EvalConfig
from deepspec.engine import Completion, Engine, SamplingParams
from deepspec.plugins import create_plugin_manager, round_observer
from deepspec.strategy import Parts
from deepspec.target import Target
from deepspec.types import RequestRound, RoundRecord, TracedStep


@dataclass(frozen=True)
class Decoded:
    """A prompt's completion and its rounds, in order."""

    completion: Completion
    rounds: tuple[RequestRound, ...]


def decode(
    target: Target,
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    config: EvalConfig,
    *,
    observers: Sequence[Callable[[RoundRecord], None]] = (),
    tracer: Callable[[TracedStep], None] | None = None,
) -> list[Decoded]:
    """Decode the prompts in batch. ``tracer`` is shown each step, too."""
    rounds: dict[int, list[RequestRound]] = {}

    def observe(record: RoundRecord) -> None:
        for round_ in record.requests:
            rounds.setdefault(round_.request_id, []).append(round_)

    engine = Engine(
        target,
        parts,
        max_batch=min(config.batch, len(prompts)),
        max_positions=max(len(prompt) for prompt in prompts) + config.max_tokens,
        seed=config.seed,
        observers=[observe, *observers, round_observer(create_plugin_manager())],
        tracer=tracer,
    )
    completions = engine.run(prompts, sampling_params(config, max_tokens=config.max_tokens))
    return [Decoded(done, tuple(rounds.get(done.request_id, ()))) for done in completions]


def decode_rounds(
    target: Target,
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    config: EvalConfig,
    *,
    observers: Sequence[Callable[[RoundRecord], None]] = (),
    tracer: Callable[[TracedStep], None] | None = None,
) -> list[list[RequestRound]]:
    """The rounds of each prompt alone, see :func:`decode`."""
    found = decode(target, parts, prompts, config, observers=observers, tracer=tracer)
    return [list(one.rounds) for one in found]


def sampling_params(config: EvalConfig, *, max_tokens: int) -> SamplingParams:
    """The configuration's sampling; seeds come from the engine's."""
    return SamplingParams(
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        max_tokens=max_tokens,
    )
