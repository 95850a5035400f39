"""Decodes prompts in batch and keeps what each round was; evaluations, live ones as well, measure by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from deepspec.config import EvalConfig
from deepspec.distributed import ALONE, World
from deepspec.engine import Completion, Engine, SamplingParams
from deepspec.plugins import create_plugin_manager, round_observer
from deepspec.sampling.streams import request_seed
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
    world: World = ALONE,
) -> list[Decoded]:
    """Decode the prompts in batch. ``tracer`` is shown each step, too.

    Each process decodes its share, and all return everything. A prompt's random numbers depend on its place
    among all of them.
    """
    first, last = world.share(len(prompts))
    if first == last:
        return _of_all([], world)
    rounds: dict[int, list[RequestRound]] = {}

    def observe(record: RoundRecord) -> None:
        for round_ in record.requests:
            rounds.setdefault(round_.request_id, []).append(round_)

    engine = Engine(
        target,
        parts,
        max_batch=min(config.batch, last - first),
        max_positions=max(len(prompt) for prompt in prompts) + config.max_tokens,
        seed=config.seed,
        observers=[observe, *observers, round_observer(create_plugin_manager())],
        tracer=tracer,
    )
    params = sampling_params(config, max_tokens=config.max_tokens)
    seeded = [replace(params, seed=request_seed(config.seed, number)) for number in range(first, last)]
    completions = engine.run(prompts[first:last], seeded)
    return _of_all([Decoded(done, tuple(rounds.get(done.request_id, ()))) for done in completions], world)


def _of_all(own: list[Decoded], world: World) -> list[Decoded]:
    """What all processes decoded, numbered by prompt."""
    if world.is_alone:
        return own
    parts = world.gather([asdict(one) for one in own])
    everything = [values for part in parts for values in part]
    return [_decoded(values, number) for number, values in enumerate(everything)]


def _decoded(values: dict[str, Any], number: int) -> Decoded:
    done = values["completion"]
    prompt, tokens = tuple(done["prompt"]), tuple(done["tokens"])
    rounds = [{**one, "request_id": number, "tokens": tuple(one["tokens"])} for one in values["rounds"]]
    return Decoded(
        Completion(number, prompt, tokens, done["finish_reason"]),
        tuple(RequestRound(**one) for one in rounds),
    )


def decode_rounds(
    target: Target,
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    config: EvalConfig,
    *,
    observers: Sequence[Callable[[RoundRecord], None]] = (),
    tracer: Callable[[TracedStep], None] | None = None,
    world: World = ALONE,
) -> list[list[RequestRound]]:
    """The rounds of each prompt alone, see :func:`decode`."""
    found = decode(target, parts, prompts, config, observers=observers, tracer=tracer, world=world)
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
