"""The SPS curve of this machine: steps per second against verify tokens, and what drafting takes beside.

Steps are rounds of the real engine with drafts that cost nothing. A first grid doubles; where the time of a
step between two points is off the straight line, more are measured between. Every point is timed twice, the
second time from the end, so that a machine whose speed drifts favours none.
"""

from __future__ import annotations

import itertools
import logging
import statistics
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepspec.curves import DraftCost, SpsCurve
from deepspec.environment import device_name, versions
from deepspec.errors import ConfigError
from deepspec.evaluate.round_times import WARM_UP, RoundShape, RoundTimer, step_parts
from deepspec.resources import memory

if TYPE_CHECKING:
    from deepspec.strategy import Parts
    from deepspec.target import Target

#: How far off the straight line between its neighbours a time is, beyond its noise, where the curve bends.
STRAIGHT = 0.05


#: A spread above which a curve says little.
BUSY = 0.15
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProfileConfig:
    """What is measured.

    Attributes:
        num_requests: R that decode together; with fewer tokens than that, fewer do.
        context_length: positions that each of them holds.
        prompt_tokens: at most, beside them in a step; it sets the curve's end, R (1 + G) + prompt_tokens.
        repeats: rounds of each point, up the grid and again down. most_points: of the curve.
    """

    num_requests: int = 16
    context_length: int = 256
    prompt_tokens: int = 512
    repeats: int = 5
    most_points: int = 32

    def __post_init__(self) -> None:
        for name, least in (
            ("num_requests", 1),
            ("context_length", 1),
            ("prompt_tokens", 0),
            ("repeats", 2),
            ("most_points", 2),
        ):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} is {value}; allowed is an integer >= {least}")


def profile(
    target: Target, parts: Parts | None = None, *, draft_length: int = 7, config: ProfileConfig | None = None
) -> SpsCurve:
    """Measure ``target`` on its device, and with ``parts`` also what their drafting takes.

    Args:
        draft_length: G where there are no parts, else theirs.

    Raises:
        ConfigError: a context longer than the target takes. ResourceError: memory that runs out.
    """
    config = config or ProfileConfig()
    length = draft_length if parts is None else parts.drafter.context.draft_length
    if length < 1:
        raise ConfigError(f"draft_length is {length}; allowed is an integer >= 1")
    _check_room(target, config, length)
    with memory(lambda: f"memory ran out for {config.num_requests} requests; lower --requests or --context"):
        steps = _timer(target, step_parts(target.info, length), config)
        points = _points(steps, config, length)
        drafting = (
            None if parts is None else _draft_cost(steps, _timer(target, parts, config), config, length)
        )
    if (usual := statistics.median(map(_spread, points.values()))) > BUSY:
        logger.warning(
            "the same rounds took times %.0f%% apart: something else runs on this machine, so measure again "
            "when it does not, or set OMP_NUM_THREADS to fewer than its cores",
            200 * usual,
        )
    medians = {tokens: statistics.median(times) for tokens, times in sorted(points.items())}
    return SpsCurve(
        verify_tokens=tuple(medians),
        steps_per_s=tuple(1 / seconds for seconds in medians.values()),
        spread=tuple(_spread(points[tokens]) for tokens in medians),
        hardware=device_name(target.device),
        model=target.name,
        dtype=str(target.dtype).removeprefix("torch."),
        versions=versions(),
        num_requests=config.num_requests,
        context_length=config.context_length,
        draft=drafting,
    )


def _check_room(target: Target, config: ProfileConfig, draft_length: int) -> None:
    written = (1 + draft_length) * (2 + WARM_UP + config.repeats)
    most = target.info.max_positions - written
    if config.context_length > most:
        raise ConfigError(
            f"--context is {config.context_length}; allowed are 1..{most}: the target takes "
            f"{target.info.max_positions} positions, and {written} are written while it is timed"
        )


def _timer(target: Target, parts: Parts, config: ProfileConfig) -> RoundTimer:
    return RoundTimer(
        target,
        parts,
        num_requests=config.num_requests,
        context_length=config.context_length,
        prompt_tokens=config.prompt_tokens,
        repeats=config.repeats,
    )


def _points(timer: RoundTimer, config: ProfileConfig, draft_length: int) -> dict[int, list[float]]:
    """Seconds of steps by their B: a doubling grid, what lies between where it bends, and all once more."""
    found: dict[int, list[float]] = {}
    shapes: dict[int, RoundShape] = {}

    def measure(shape: RoundShape) -> int:
        timed = timer.time(shape)
        shapes.setdefault(timed[0].tokens, shape)
        found.setdefault(timed[0].tokens, []).extend(one.seconds for one in timed)
        return timed[0].tokens

    def shape_of(tokens: int) -> RoundShape:
        return RoundShape.of_tokens(tokens, config.num_requests, draft_length)

    grid = sorted({measure(shape_of(tokens)) for tokens in _grid(config, draft_length)})
    unseen = list(pairwise(grid))
    while unseen and len(found) < config.most_points:
        low, high = unseen.pop(0)
        if high - low < 2 or (middle := measure(shape_of((low + high) // 2))) in (low, high):
            continue
        if _bends(found, low, middle, high):
            unseen += [(low, middle), (middle, high)]
    for tokens in sorted(found, reverse=True):
        measure(shapes[tokens])
    return found


def _grid(config: ProfileConfig, draft_length: int) -> set[int]:
    """Powers of two, where requests have their first drafts, all of them, and the most prompt tokens."""
    whole = config.num_requests * (1 + draft_length)
    end = whole + config.prompt_tokens
    powers = {2**n for n in range(end.bit_length())}
    return {tokens for tokens in powers | {config.num_requests, whole, end} if tokens <= end}


def _bends(found: dict[int, list[float]], low: int, middle: int, high: int) -> bool:
    first, between, last = (statistics.median(found[tokens]) for tokens in (low, middle, high))
    straight = first + (middle - low) / (high - low) * (last - first)
    noise = max(_spread(found[tokens]) * statistics.median(found[tokens]) for tokens in (low, middle, high))
    return abs(between - straight) > max(STRAIGHT * straight, noise)


def _spread(seconds: list[float]) -> float:
    """Half the distance of the quartiles, as a share of the median."""
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / (2 * middle))


def _draft_cost(steps: RoundTimer, rounds: RoundTimer, config: ProfileConfig, draft_length: int) -> DraftCost:
    """What whole rounds take longer than steps with drafts for nothing, fitted over R, prompts and G."""
    counts = sorted({1, (1 + config.num_requests) // 2, config.num_requests})
    lengths = sorted({1, (1 + draft_length) // 2, draft_length})

    def longer(shape: RoundShape) -> float:
        plain, whole = (
            statistics.median(one.seconds for one in timer.time(shape)) for timer in (steps, rounds)
        )
        return whole - plain

    undrafted = [RoundShape(num, 0, 0, prompt) for num in counts for prompt in {0, config.prompt_tokens}]
    taken_in = np.array([(1.0, shape.num_requests + shape.prompt_tokens) for shape in undrafted])
    extend, per_token = _least_squares(taken_in, np.array([longer(shape) for shape in undrafted]))
    drafted = [RoundShape(num, length, num * length) for num, length in itertools.product(counts, lengths)]
    rows = np.array([(1.0, shape.num_draft, shape.verified) for shape in drafted])
    seconds = [longer(shape) - extend - shape.num_requests * per_token for shape in drafted]
    constant, position, token = _least_squares(rows, np.array(seconds))
    return DraftCost(
        seconds=constant,
        seconds_per_position=position,
        seconds_per_token=token,
        extend_seconds=extend,
        extend_seconds_per_token=per_token,
    )


def _least_squares(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> list[float]:
    """Coefficients >= 0: the best of every choice of columns; errors are relative to what is wanted."""
    weight = 1 / np.maximum(np.abs(wanted), 1e-9)
    best, error = np.zeros(rows.shape[1]), float("inf")
    for chosen in itertools.product((False, True), repeat=rows.shape[1]):
        found, used = np.zeros(rows.shape[1]), np.array(chosen)
        found[used] = np.linalg.lstsq(rows[:, used] * weight[:, None], wanted * weight, rcond=None)[0]
        off = float((((rows @ found - wanted) * weight) ** 2).sum())
        if (found >= 0).all() and off < error:
            best, error = found, off
    return [float(value) for value in best]
