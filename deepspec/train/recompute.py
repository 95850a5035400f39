"""Gradient checkpointing (1604.06174): a training step keeps what goes into a draft layer, not what it makes.

The layer is computed once more on the way back, by the same operations, so gradients stay equal to the last
bit.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from deepspec.errors import ConfigError
from deepspec.interfaces import BaseDrafter
from deepspec.nn import DecoderLayer


def recompute_layers(drafter: BaseDrafter) -> None:
    """Let each :class:`deepspec.nn.DecoderLayer` of ``drafter``, and transformers' own, be recomputed.

    Raises:
        ConfigError: it has neither.
    """
    layers = [module for module in drafter.modules() if isinstance(module, DecoderLayer)]
    models = [module for module in drafter.modules() if isinstance(module, PreTrainedModel)]
    inner = {part for model in models for part in model.modules() if part is not model}
    models = [model for model in models if model.supports_gradient_checkpointing and model not in inner]
    if not layers and not models:
        raise ConfigError(
            f"train.gradient_checkpointing: drafter {drafter.name!r} has no layer that can be computed once "
            "more (a deepspec.nn.DecoderLayer, or a transformers model that supports it); set it to false"
        )
    for layer in layers:
        layer.recomputed = True
    for model in models:
        # transformers gave the switch this name in 5.23, and warns of the older one since.
        switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        switch({"use_reentrant": False, "preserve_rng_state": False})
