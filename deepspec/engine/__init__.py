"""The batched engine."""

from deepspec.engine.engine import Engine
from deepspec.engine.request import Completion, FinishReason, TokenEvent
from deepspec.sampling import SamplingParams

__all__ = ["Completion", "Engine", "FinishReason", "SamplingParams", "TokenEvent"]
