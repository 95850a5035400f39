"""From hidden states and latents to draft logits and back, a chunk of slots at a time.

No graph of these products is recorded: their gradients are products again, and those of the weights, which
may be as large as the vocabulary, add up where they belong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepspec.interfaces import Readout


@dataclass(frozen=True)
class OutputWeights:
    """How hidden states and latents become draft logits: softcap(h W_lm^T) + latent W_out^T."""

    readout: Readout
    latent: Tensor | None


@dataclass(frozen=True)
class ChunkLogits:
    """Logits ``[M, Vd]`` of a chunk, and t ``[M, Vd]`` where softcap(h W_lm^T) = cap * t."""

    logits: Tensor
    tanh: Tensor | None


class OutputProduct:
    """The product of one step and its derivative, in the weights' types or autocast's.

    The gradients of trained weights add up over all chunks: in ``grad`` where the weight is a leaf, so that
    no second tensor of its size is made; :meth:`collected` has the others.
    """

    def __init__(self, weights: OutputWeights) -> None:
        readout = weights.readout
        self.softcap = readout.softcap
        self.target_ids = readout.target_ids
        self.weight = _for_product(readout.weight)
        self.latent = None if weights.latent is None else _for_product(weights.latent)
        self._trained = (readout.weight if readout.trained else None, weights.latent)
        self._collected: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def logits(self, hidden: Tensor, latent: Tensor | None) -> ChunkLogits:
        """Of M slots, in the product's type."""
        scaled = hidden if self.softcap is None else hidden / self.softcap
        base = scaled.to(self.weight.dtype) @ self.weight.T
        tanh = None if self.softcap is None else base.tanh_()
        cap = 1.0 if self.softcap is None else self.softcap
        if latent is None or self.latent is None:
            return ChunkLogits(base if tanh is None else tanh * cap, tanh)
        base = base.to(self.latent.dtype)
        product = (latent.to(self.latent.dtype), self.latent.T)
        if tanh is None:
            return ChunkLogits(base.addmm_(*product), None)
        return ChunkLogits(torch.addmm(base, *product, beta=cap), tanh)

    @torch.no_grad()
    def backward(
        self, gradient: ChunkLogits, hidden: Tensor, latent: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Gradients of ``hidden`` and ``latent``, given that of the logits and of what is capped, if any."""
        weight, output = self._trained
        by_logits = gradient.logits
        by_base = (by_logits if gradient.tanh is None else gradient.tanh).to(self.weight.dtype)
        by_latent = None
        if latent is not None and self.latent is not None:
            by_logits = by_logits.to(self.latent.dtype)
            by_latent = (by_logits @ self.latent).to(latent.dtype)
            self._collect(output, by_logits, latent)
        self._collect(weight, by_base, hidden)
        return (by_base @ self.weight).to(hidden.dtype), by_latent

    def collected(self) -> list[tuple[Tensor, Tensor]]:
        """Weights that are no leaves, with their gradients."""
        return list(self._collected.values())

    def _collect(self, weight: Tensor | None, gradient: Tensor, factor: Tensor) -> None:
        if weight is None or not weight.requires_grad:
            return
        if weight.is_leaf:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            total = weight.grad
        else:
            total = self._collected.setdefault(id(weight), (weight, torch.zeros_like(weight)))[1]
        if gradient.dtype == total.dtype:
            total.addmm_(gradient.T, factor.to(total.dtype))
        else:
            total += gradient.T @ factor.to(gradient.dtype)


def _for_product(weight: Tensor) -> Tensor:
    """The weight without its graph, in the type that autocast chooses for products where it is on."""
    place = weight.device.type
    weight = weight.detach()
    return weight.to(torch.get_autocast_dtype(place)) if torch.is_autocast_enabled(place) else weight
