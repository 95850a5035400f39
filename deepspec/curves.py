"""The SPS curve: steps per second of a target against the tokens in one step, as a profile measured it.

A curve file is JSON: ``{"schema": 1, "verify_tokens": [..], "steps_per_s": [..], "modelled", "hardware",
"model", "dtype", "versions", "draft"}``. Between its points it is the *time* of a step that is interpolated.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deepspec.errors import ConfigError
from deepspec.validation import explain


class DraftCost(BaseModel):
    """Time that a drafter takes, beside the target's steps: to take in text, and to draft."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seconds: float = Field(default=0.0, ge=0, description="of a round that drafts, whatever it drafts")
    seconds_per_position: float = Field(default=0.0, ge=0, description="for each drafted position, beside")
    seconds_per_token: float = Field(
        default=0.0, ge=0, description="for each drafted token of each request, beside"
    )
    extend_seconds: float = Field(
        default=0.0, ge=0, description="of every round, to take in what was committed and prompts"
    )
    extend_seconds_per_token: float = Field(
        default=0.0, ge=0, description="for each request and each prompt token of a round, beside"
    )

    def of(self, num_requests: int, num_draft: int, prompt_tokens: int = 0) -> float:
        """Seconds to take in a round's text and draft ``num_draft`` tokens for each of R requests."""
        if num_requests + prompt_tokens == 0:
            return 0.0
        extending = self.extend_seconds + (num_requests + prompt_tokens) * self.extend_seconds_per_token
        if num_requests == 0 or num_draft == 0:
            return extending
        tokens = num_requests * num_draft
        drafting = self.seconds + num_draft * self.seconds_per_position + tokens * self.seconds_per_token
        return extending + drafting


class SpsCurve(BaseModel):
    """Measured (or modelled) points of steps per second, and what they hold for."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_: Literal[1] = Field(default=1, alias="schema", description="of the file")
    verify_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        min_length=1, description="B, tokens in a step: verify rows and prompt tokens; ascending"
    )
    steps_per_s: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="steps per second at each B")
    modelled: bool = Field(default=False, description="computed from a roofline, not measured")
    hardware: str = Field(default="", description="the device's name")
    model: str = Field(default="", description="the target's name")
    dtype: str = Field(default="", description="of the target's weights")
    versions: dict[str, str] = Field(default={}, description="of the packages that decide speed")
    num_requests: int | None = Field(default=None, ge=1, description="R that decoded together, at most")
    context_length: float | None = Field(default=None, ge=0, description="positions that each of them held")
    spread: tuple[float, ...] | None = Field(
        default=None,
        description="of a step's time at each B: half its quartiles' distance, a share of the median",
    )
    draft: DraftCost | None = Field(
        default=None, description="what drafting takes beside the target's step; null counts it as free"
    )

    @model_validator(mode="after")
    def _points(self) -> SpsCurve:
        if len(self.verify_tokens) != len(self.steps_per_s):
            raise ValueError(
                f"verify_tokens has {len(self.verify_tokens)} entries and steps_per_s "
                f"{len(self.steps_per_s)}; give one speed for each number of tokens"
            )
        unsorted = next(((a, b) for a, b in pairwise(self.verify_tokens) if b <= a), None)
        if unsorted is not None:
            raise ValueError(
                f"verify_tokens has {unsorted[1]} after {unsorted[0]}; give ascending numbers, each once"
            )
        return self

    @classmethod
    def read(cls, path: str | Path) -> SpsCurve:
        """The curve in a file; raises ConfigError in one line that names the file and what is wrong in it."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"SPS curve {path} cannot be read: {reason}; give a curve's file") from error
        except ValidationError as error:
            raise ConfigError(explain(error, cls, f"SPS curve {path}")) from error

    def to_json(self) -> dict[str, Any]:
        """The keys of a curve's file."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def to_sglang(self) -> dict[str, Any]:
        """The same points as SGLang reads them."""
        return {
            "sample_batch_tokens": list(self.verify_tokens),
            "sample_steps_per_sec": list(self.steps_per_s),
            "max_batch_tokens": self.verify_tokens[-1],
        }

    @property
    def is_flat(self) -> bool:
        """Whether more tokens are never slower, so that a scheduler has no reason to leave any out."""
        return max(self.steps_per_s) <= self.steps_per_s[-1]

    @cached_property
    def is_convex(self) -> bool:
        """Whether each further token takes at least as long as the one before, so that there is no cliff."""
        points = [(b, 1 / speed) for b, speed in zip(self.verify_tokens, self.steps_per_s, strict=True)]
        slopes = [(slow - fast) / (high - low) for (low, fast), (high, slow) in pairwise(points)]
        slopes = [*([0.0] if points[0][0] > 1 else []), *slopes, points[-1][1] / points[-1][0]]
        return all(after >= before - 1e-9 * abs(before) for before, after in pairwise(slopes))

    def draft_seconds(self, num_requests: int, num_draft: int, prompt_tokens: int = 0) -> float:
        """Seconds of the drafter in a round, see :class:`DraftCost`; 0 where the curve does not say."""
        return 0.0 if self.draft is None else self.draft.of(num_requests, num_draft, prompt_tokens)

    def table(self, most_tokens: int) -> list[float]:
        """Steps per second at B = 1..most_tokens.

        Below the first point a step takes as long as there, past the last one in proportion to its tokens.
        """
        points = [(b, 1 / speed) for b, speed in zip(self.verify_tokens, self.steps_per_s, strict=True)]
        times = [points[0][1]] * min(points[0][0], most_tokens)
        for (low, fast), (high, slow) in pairwise(points):
            share = [(b - low) / (high - low) for b in range(low + 1, min(high, most_tokens) + 1)]
            times += [fast + part * (slow - fast) for part in share]
        last, slowest = points[-1]
        times += [slowest * b / last for b in range(last + 1, most_tokens + 1)]
        return [1 / time for time in times]
