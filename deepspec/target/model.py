"""The frozen target: a causal language model over packed rows, and what drafters and the engine need to know
of it. Never samples, never trains.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deepspec.errors import ConfigError, TargetError
from deepspec.interfaces import TargetInfo
from deepspec.target.decoder import PackedDecoder
from deepspec.target.describe import describe, widest_layer
from deepspec.target.kv_slots import KVSlots
from deepspec.target.quantized import stored_tensors
from deepspec.target.sharding import whole_layer
from deepspec.types import Features, Span, TokenBatch

_FINGERPRINT_VALUES = 64


@dataclass(frozen=True)
class Target:
    """A frozen model with what drafters and the engine need to know of it.

    Attributes:
        decoder: the Hugging Face model over packed rows, in evaluation mode, without gradients.
        info: sizes and shared weights.
        tokenizer: its tokenizer, or None for a bare model.
        name: as the user gave it. revision: the commit, when known. fingerprint: of the weights.
        stop_token_ids: tokens that end a text.
        absent_layer: reads a decoder layer from the files of a target whose layers were left out.
        is_sharded: whether each process has a share of the layers, so that all must run them together.
    """

    decoder: PackedDecoder
    info: TargetInfo
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None
    fingerprint: str
    stop_token_ids: tuple[int, ...]
    absent_layer: Callable[[int], nn.Module] | None = None
    is_sharded: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its decoder layers are in memory, so that it can read and decode."""
        return self.absent_layer is None

    @property
    def model(self) -> PreTrainedModel:
        """The Hugging Face model itself."""
        return self.decoder.model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.info.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.info.embedding.dtype

    def info_on(self, device: torch.device) -> TargetInfo:
        """What drafters need, with the shared weights on ``device`` (the same ones when they are there)."""
        info = self.info
        return replace(info, embedding=info.embedding.to(device), lm_head=info.lm_head.to(device))

    def new_slots(self, num_slots: int, max_positions: int) -> KVSlots:
        """KV slots for that many requests of at most that many positions."""
        return self.decoder.new_slots(num_slots, max_positions)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse taps that do not exist or repeat, and the last layer (libraries disagree on its output)."""
        if len(set(layers)) < len(layers):
            raise ConfigError(
                f"target layers {', '.join(map(str, layers))}: one is named twice; name each once"
            )
        last = self.info.num_layers - 1
        for layer in layers:
            if not 0 <= layer < last:
                raise ConfigError(
                    f"target layer {layer} cannot be tapped; allowed are 0..{last - 1} of {last + 1} layers, "
                    "never the last (a drafter that wants its output reads features.last_hidden)"
                )

    def layer(self, number: int) -> nn.Module:
        """A decoder layer with its weights; one without any when no file has them by their usual names."""
        if self.absent_layer is not None:
            return self.absent_layer(number)
        layer = self.model.get_decoder().layers[number]
        return whole_layer(layer) if self.is_sharded else layer

    def forward(
        self, tokens: Tensor, spans: Sequence[Span], cache: KVSlots | None, layers: Sequence[int]
    ) -> Features:
        """One packed forward; see :meth:`PackedDecoder.forward`. Raises TargetError without layers."""
        self._check_whole()
        features: Features = self.decoder(tokens, spans, cache, layers)
        return features

    @torch.no_grad()
    def features(self, batch: TokenBatch, layers: Sequence[int]) -> Features:
        """Features of training text; see :meth:`PackedDecoder.read`. Raises TargetError without layers."""
        self._check_whole()
        return self.decoder.read(batch, layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of last hidden states ``[..., D]``: the LM head and the final soft-cap."""
        return self.decoder.logits(hidden)

    def _check_whole(self) -> None:
        if not self.is_whole:
            raise TargetError(
                f"target {self.name!r} is here without its decoder layers, as training on stored features "
                "leaves it; load the run again: deepspec.load(run.path)"
            )


def make_target(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "in-memory",
    revision: str | None = None,
    whole: tuple[Any, nn.Module] | None = None,
) -> Target:
    """Freeze a loaded model as a target.

    Args:
        whole: of a model without its layers, the text model's configuration with them and its layer number
            :func:`~deepspec.target.describe.widest_layer`, which needs no weights.

    Raises:
        TargetError: a decoder with layers of an unsupported kind, or whose logits are more than a LM head
            and a soft-cap.
    """
    model.eval().requires_grad_(False)
    decoder = PackedDecoder(model, name=name)
    decoder.check_readout()
    config = decoder.config
    config, layer = whole or (config, model.get_decoder().layers[widest_layer(config)])
    return Target(
        decoder=decoder,
        info=describe(decoder, tokenizer, config, layer),
        tokenizer=tokenizer,
        name=name,
        revision=revision,
        fingerprint=fingerprint(model),
        stop_token_ids=_stop_tokens(model, tokenizer),
    )


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    found = getattr(model.generation_config, "eos_token_id", None) if model.generation_config else None
    ids = found if isinstance(found, list) else [found]
    if tokenizer is not None:
        ids = [*ids, tokenizer.eos_token_id]
    return tuple(sorted({int(i) for i in ids if i is not None}))


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of shapes and sampled weights, the same in whatever float type the model was loaded."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for stored in stored_tensors(tensor.detach()):
            flat = stored.flatten()
            sample = flat[:: max(1, flat.numel() // _FINGERPRINT_VALUES)][:_FINGERPRINT_VALUES]
            digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]
