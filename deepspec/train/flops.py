"""Floating-point operations of a training step.

``torch.utils.flop_counter`` counts matrix products and attention, forward and backward, two operations for
each multiplication with its addition. Attention counts its whole rectangle of queries and keys, masked or
not. Element-wise work, the optimiser's own arithmetic and what is measured for the log alone are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from deepspec.train.shares import own_rows

if TYPE_CHECKING:
    from deepspec.train.trainer import Trainer

Result = TypeVar("Result")


@dataclass(frozen=True)
class StepFlops:
    """One optimiser step: everything, and the target's forward among it."""

    total: int
    target: int


def count_step(trainer: Trainer) -> StepFlops:
    """What a step takes, in all processes together: the first step's text computed once more and forgotten.

    Counting inside a real step would change its last digits: torch takes other kernels while it is watched.
    """
    batch = trainer.sampler.batch(0)
    measure = trainer.objective.reads_target
    _, total = count_flops(lambda: trainer.learn(batch, 0, measure=measure))
    trainer.optimizer.clear()
    _, target = count_flops(lambda: trainer.features(own_rows(batch, trainer.world)))
    total, target = (int(number) for number in trainer.world.add_up([total, target]))
    return StepFlops(total, target)


def count_flops(run: Callable[[], Result]) -> tuple[Result, int]:
    """What ``run`` returns, and the operations it took."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        result = run()
    return result, counter.get_total_flops()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **named: Any) -> int:
    """Scores and their product with values: ``query [B, heads, Q, d]``, ``key [B, kv heads, keys, d]``."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *rest: Any, **named: Any
) -> int:
    """Five products: the scores once more, then the gradients of scores, values, queries and keys."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (3 * query[3] + 2 * value[3])


# Torch counts none of these on a CPU, and its own formulas refused grouped queries for long.
_KINDS = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
_ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in _KINDS
    for suffix, formula in (("", _attention), ("_backward", _attention_backward))
}
