"""Verify and loss kernels behind one choice: which implementation runs is decided here and can be reported.

The plain-torch reference serves the CPU and Apple's GPUs, Triton every other device where it is installed.
Triton is imported when it is going to run, not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels import loss_reference, reference, schedule
from deepspec.kernels.checks import checked
from deepspec.kernels.loss_reference import RowStatistics, TargetLogits
from deepspec.sampling import Drawn
from deepspec.sampling.streams import Array
from deepspec.types import Draft, Sampling, TargetRows, Verdict

__all__ = [
    "CHECK_VARIABLE",
    "KERNELS_VARIABLE",
    "DrawStep",
    "LossBackend",
    "VerifyBackend",
    "backend_for",
    "loss_backend_for",
]

#: ``reference`` or ``triton`` forces one; empty chooses by device and dtype.
KERNELS_VARIABLE = "DEEPSPEC_KERNELS"
#: ``1`` looks at every round's input first, which waits for the device.
CHECK_VARIABLE = "DEEPSPEC_KERNELS_CHECK"
DrawStep = Callable[[Tensor, tuple[Tensor, Tensor] | None, Sampling, Tensor], tuple[Tensor, Drawn]]
_TRITON_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class VerifyBackend:
    """Noise, draft step, scheduler and verification rules of one implementation.

    See ``reference`` and ``schedule`` for what each must compute.
    """

    name: str
    uniforms: Callable[[Array, Array, Array, Array, torch.device], Tensor]
    draw_step: DrawStep
    prefix_lengths: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    token_rule: Callable[[TargetRows, Draft, Tensor, Tensor, Tensor], Verdict]
    block_rule: Callable[[TargetRows, Draft, Tensor, Tensor, Tensor], Verdict]
    delta_rule: Callable[[TargetRows, Draft, Tensor, Tensor], Verdict]


@dataclass(frozen=True)
class LossBackend:
    """The loss kernels of one implementation; see ``loss_reference`` for what each must compute."""

    name: str
    log_normaliser: Callable[[Tensor], Tensor]
    statistics: Callable[[Tensor, Tensor, TargetLogits | None], RowStatistics]
    gradient_: Callable[..., None]


_REFERENCE = VerifyBackend(
    name="reference",
    uniforms=reference.uniforms,
    draw_step=reference.draw_step,
    prefix_lengths=schedule.prefix_lengths,
    token_rule=reference.token_rule,
    block_rule=reference.block_rule,
    delta_rule=reference.delta_rule,
)
_REFERENCE_LOSS = LossBackend(
    "reference", loss_reference.log_normaliser, loss_reference.statistics, loss_reference.gradient_
)


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> VerifyBackend:
    """The implementation for target rows of ``dtype`` on ``device``; float64 is the reference's.

    Raises:
        ConfigError: ``DEEPSPEC_KERNELS`` is no backend's name, or names one that cannot run here.
    """
    backend = _triton() if _takes_triton(device, dtype) else _REFERENCE
    return _checked(backend) if os.environ.get(CHECK_VARIABLE) == "1" else backend


def loss_backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> LossBackend:
    """The implementation for logits of ``dtype`` on ``device``; raises as :func:`backend_for` does."""
    return _triton_loss() if _takes_triton(device, dtype) else _REFERENCE_LOSS


def _takes_triton(device: torch.device, dtype: torch.dtype) -> bool:
    wanted = os.environ.get(KERNELS_VARIABLE, "")
    if wanted not in ("", "reference", "triton"):
        raise ConfigError(
            f"{KERNELS_VARIABLE} is {wanted!r}; allowed are reference and triton, or leave it unset"
        )
    refusal = _refusal(device, dtype)
    if wanted == "triton" and refusal is not None:
        raise ConfigError(
            f"{KERNELS_VARIABLE}=triton cannot run here: {refusal}; unset it or set it to reference"
        )
    return wanted == "triton" or (not wanted and refusal is None and device.type != "cpu")


def _refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton cannot serve such rows, or None; it may have other backends than CUDA's."""
    if not _is_installed():
        return "triton is not installed (it exists for Linux)"
    if device.type in ("mps", "meta"):
        return f"triton has nothing for device {device.type}"
    if device.type == "cpu" and not _interpreting():
        return "CPU tensors need Triton's interpreter (TRITON_INTERPRET=1), which is for tests"
    if dtype not in _TRITON_DTYPES:
        return f"the rows are {dtype}, and its kernels read bfloat16, float16 and float32"
    return None


@cache
def _is_installed() -> bool:
    return find_spec("triton") is not None


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def _triton() -> VerifyBackend:
    from deepspec.kernels import triton_draft, triton_philox, triton_rules, triton_schedule

    return VerifyBackend(
        name="triton (interpreted)" if _interpreting() else "triton",
        uniforms=triton_philox.uniforms,
        draw_step=triton_draft.draw_step,
        prefix_lengths=triton_schedule.prefix_lengths,
        token_rule=triton_rules.token_rule,
        block_rule=triton_rules.block_rule,
        delta_rule=triton_rules.delta_rule,
    )


@cache
def _triton_loss() -> LossBackend:
    from deepspec.kernels import triton_loss

    name = "triton (interpreted)" if _interpreting() else "triton"
    return LossBackend(name, triton_loss.log_normaliser, triton_loss.statistics, triton_loss.gradient_)


@cache
def _checked(backend: VerifyBackend) -> VerifyBackend:
    return replace(
        backend,
        prefix_lengths=schedule.checked(backend.prefix_lengths),
        token_rule=checked(backend.token_rule),
        block_rule=checked(backend.block_rule),
        delta_rule=checked(backend.delta_rule),
    )
