"""How one request wants to be sampled, and the same for a batch on device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deepspec.errors import ConfigError
from deepspec.types import Sampling


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of a request.

    Attributes:
        temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off.
        seed: 64 bits; None takes one from the engine's seed and the request's number.
        max_tokens: how many tokens to generate at most.
        stop_token_ids: tokens that end the output, besides the target's own (``Target.stop_token_ids``).
        ignore_stop: the target's own stop tokens end nothing; those in ``stop_token_ids`` still do.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int = 128
    stop_token_ids: tuple[int, ...] = ()
    ignore_stop: bool = False

    def __post_init__(self) -> None:
        checks = (
            (
                "temperature",
                self.temperature,
                "a number >= 0",
                math.isfinite(self.temperature) and self.temperature >= 0,
            ),
            ("top_k", self.top_k, "an integer >= 0 (0 is off)", self.top_k >= 0),
            ("top_p", self.top_p, "in (0, 1] (1 is off)", 0 < self.top_p <= 1),
            ("min_p", self.min_p, "in [0, 1] (0 is off)", 0 <= self.min_p <= 1),
            ("max_tokens", self.max_tokens, "an integer >= 1", self.max_tokens >= 1),
            ("seed", self.seed, "an integer of at most 64 bits", self.seed is None or 0 <= self.seed < 2**64),
        )
        for name, value, allowed, passed in checks:
            if not passed:
                raise ConfigError(f"{name} is {value!r}; allowed is {allowed}")


def batch_sampling(params: Sequence[SamplingParams], vocab_size: int, device: torch.device) -> Sampling:
    """Collect R requests' parameters into tensors; what nobody uses stays None."""

    def column(values: list[float] | list[int], off: float, dtype: torch.dtype) -> torch.Tensor | None:
        return None if all(v == off for v in values) else torch.tensor(values, dtype=dtype, device=device)

    temperatures = [p.temperature for p in params]
    real = torch.float32 if device.type == "mps" else torch.float64
    return Sampling(
        temperature=torch.tensor(temperatures, dtype=real, device=device),
        top_k=column([p.top_k or vocab_size for p in params], vocab_size, torch.int64),
        top_p=column([p.top_p for p in params], 1.0, real),
        min_p=column([p.min_p for p in params], 0.0, real),
        any_greedy=any(t == 0 for t in temperatures),
        unit=all(t == 1 for t in temperatures),
    )
