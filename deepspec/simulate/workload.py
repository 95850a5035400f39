"""What is served: requests of several classes of text, their lengths, and when they come."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deepspec.errors import ConfigError, nearest
from deepspec.simulate.acceptance import PUBLISHED_LENGTHS


@dataclass(frozen=True)
class Workload:
    """Shares of the classes, which need not sum to 1; lengths are exponential of these means, at least 1."""

    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PUBLISHED_LENGTHS, 1.0))
    prompt_tokens: float = 512
    output_tokens: float = 512

    def __post_init__(self) -> None:
        """Raises ConfigError for unknown classes, and for numbers out of range."""
        for name, share in self.shares.items():
            if name not in PUBLISHED_LENGTHS:
                raise ConfigError(f"unknown class of text {name!r}; {nearest(name, PUBLISHED_LENGTHS)}")
            if not 0 <= share < np.inf:
                raise ConfigError(f"share of {name} is {share}; allowed is a number >= 0")
        if not any(self.shares.values()):
            raise ConfigError("no class of text has a share; give one at least, as in math=1,chat=2")
        for name, tokens in (("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)):
            if not 1 <= tokens < np.inf:
                raise ConfigError(f"{name} is {tokens}; allowed is a number >= 1")

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names; a request's class is an index in it."""
        return tuple(self.shares)

    @property
    def context_length(self) -> float:
        """The mean number of positions that a running request holds."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True)
class Requests:
    """N requests in the order of their coming, and again from the first after the last.

    Attributes:
        classes, prompt_tokens, output_tokens: int64 ``[N]``. arrivals: seconds, ascending, float64 ``[N]``;
        None where one comes whenever a slot is free, without end.
    """

    classes: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrivals: NDArray[np.float64] | None = None


def closed_loop(workload: Workload, num: int, seed: int) -> Requests:
    """A fixed number of users, each asking again as soon as it has its answer."""
    random = np.random.default_rng([seed, 1])
    shares = np.array(list(workload.shares.values()))
    prompts, outputs = random.exponential(1.0, (2, num))
    return Requests(
        classes=random.choice(len(shares), num, p=shares / shares.sum()),
        prompt_tokens=np.maximum(1, np.rint(prompts * workload.prompt_tokens)).astype(np.int64),
        output_tokens=np.maximum(1, np.rint(outputs * workload.output_tokens)).astype(np.int64),
    )


def open_loop(workload: Workload, arrivals: NDArray[np.float64], seed: int) -> Requests:
    """Requests that come at these times; raises ConfigError for times that are negative or descend."""
    if (
        len(arrivals) == 0
        or not (np.diff(arrivals, prepend=0.0) >= 0).all()
        or not np.isfinite(arrivals).all()
    ):
        raise ConfigError(
            "arrivals are not ascending seconds from 0; sort them and leave out what is no number"
        )
    same = closed_loop(workload, len(arrivals), seed)
    return Requests(same.classes, same.prompt_tokens, same.output_tokens, arrivals)


def arrival_times(given: str, num: int, seed: int) -> NDArray[np.float64] | None:
    """``closed`` (None), ``poisson:RATE``, ``bursts:RATE:SIZE`` (a second), or a JSON file of seconds.

    Raises ConfigError for anything else.
    """
    kind, *numbers = given.split(":")
    random = np.random.default_rng([seed, 2])
    if given == "closed":
        return None
    if kind == "poisson" and len(numbers) == 1:
        return random.exponential(1 / _positive(given, numbers[0]), num).cumsum()
    if kind == "bursts" and len(numbers) == 2:
        rate, size = _positive(given, numbers[0]), int(_positive(given, numbers[1]))
        gaps = random.exponential(size / rate, -(-num // max(size, 1)))
        return gaps.cumsum().repeat(max(size, 1))[:num]
    try:
        return np.array(json.loads(Path(given).read_text(encoding="utf-8")), dtype=np.float64).reshape(-1)
    except OSError as error:
        raise ConfigError(
            f"arrivals {given!r} are none; allowed are closed, poisson:RATE, bursts:RATE:SIZE and a JSON "
            f"file of seconds ({error.strerror})"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"arrivals file {given} holds no JSON list of seconds: {error}") from error


def _positive(given: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < np.inf:
        raise ConfigError(f"arrivals {given!r}: {text!r} is no number above 0")
    return number
