"""Logits to distribution, the random streams, and the sampler."""

from deepspec.sampling.params import SamplingParams, batch_sampling
from deepspec.sampling.process import process_rows, scale
from deepspec.sampling.sampler import Drawn, draw_draft
from deepspec.sampling.streams import Stream, request_seed, uniforms

__all__ = [
    "Drawn",
    "SamplingParams",
    "Stream",
    "batch_sampling",
    "draw_draft",
    "process_rows",
    "request_seed",
    "scale",
    "uniforms",
]
