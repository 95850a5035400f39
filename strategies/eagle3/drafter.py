"""Eagle 3's drafter: one token a step, from fused target features and then from its own hidden states.

Li et al. 2025 (2503.01840). The first layer's attention reads [norm(embedding of the next token) ;
norm(feature)], its residual stream is the feature; further layers are ordinary. What is fed back is the
hidden state before the final norm. Weight names are the field's shared ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import embedding

from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout, TokenCount
from deepspec.nn import (
    DecoderLayer,
    DraftVocabulary,
    LayerConfig,
    RMSNorm,
    Unroll,
    UnrolledRound,
    UnrolledSlots,
    pass_through_,
)
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch


class Eagle3Config(PartConfig):
    """Options of the Eagle 3 drafter; a size left out is the target's."""

    num_layers: int = Field(default=1, ge=1, description="draft layers")
    target_layers: tuple[int, ...] | None = Field(
        default=None,
        min_length=1,
        description="tapped target layers, 0-based, never the last; null is a low, a middle "
        "and a high one, as published",
    )
    draft_vocab_size: TokenCount | None = Field(
        default=None,
        ge=1,
        description="tokens that can be drafted: the most frequent of the training text; null is all",
    )
    intermediate_size: int | None = Field(default=None, ge=1, description="width of the draft MLP")
    num_heads: int | None = Field(default=None, ge=1, description="attention heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key/value heads")


def spread_layers(num_layers: int) -> tuple[int, ...]:
    """A low, a middle and a high layer of a target of that depth, as the released checkpoints tap."""
    chosen = (1, num_layers // 2 - 1, num_layers - 4)
    return tuple(sorted({min(max(layer, 0), max(num_layers - 2, 0)) for layer in chosen}))


class FusingLayer(DecoderLayer):
    """The first layer, whose attention is twice as wide inwards."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config, in_size=2 * config.hidden_size)
        self.hidden_norm = RMSNorm(config.hidden_size, config.eps, unit_offset=config.traits.unit_offset)

    def fused(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """[norm(embedding) ; norm(feature)]: twice ``[..., H]`` to ``[..., 2H]``."""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(hidden)], dim=-1)


class Eagle3Drafter(Drafter[UnrolledRound]):
    """Autoregressive drafter over target features; embedding and LM head are the target's, frozen."""

    name = "eagle3"
    reads_last_hidden = False
    Config = Eagle3Config
    config: Eagle3Config

    def __init__(self, config: Eagle3Config, context: BuildContext) -> None:
        super().__init__(config, context)
        info = context.target
        self.info = info
        self._target_layers = config.target_layers or spread_layers(info.num_layers)
        layer = LayerConfig.of(
            info,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
        )
        self.fc = nn.Linear(len(self._target_layers) * info.hidden_size, info.hidden_size, bias=False)
        pass_through_(self.fc.weight)
        first = FusingLayer(layer)
        more = [DecoderLayer(layer) for _ in range(config.num_layers - 1)]
        self.layers = nn.ModuleList([first, *more])
        self.norm = RMSNorm(info.hidden_size, info.rms_norm_eps, unit_offset=layer.traits.unit_offset)
        self._fused = first.fused
        self.vocabulary = DraftVocabulary(info, config.draft_vocab_size)
        self._unroll = Unroll(
            enter=self._enter,
            layers=(first, *more),
            norm=self.norm,
            feeds_back_normed=False,
        )

    @property
    def hidden_size(self) -> int:
        return self.info.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return self._target_layers

    def readout(self) -> Readout:
        words = self.vocabulary
        return Readout(words.weight, self.info.final_softcap, target_ids=words.target_ids)

    def choose_vocabulary(self, counts: Tensor, required: Sequence[int]) -> float | None:
        return self.vocabulary.choose(counts, required)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        num_rows = max_positions + self.context.draft_length
        self._slots: UnrolledSlots = self._unroll.allocate(num_slots, num_rows, dtype=dtype, device=device)

    def extend(self, extension: Extension) -> None:
        self._slots.extend(extension, self._fuse(extension.features))

    def begin(self, anchors: Anchors) -> UnrolledRound:
        return self._slots.begin(anchors)

    def step(self, state: UnrolledRound, k: int, previous: Tensor) -> Tensor:
        return state.step(k, previous)

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        return self._unroll.block(batch, self._fuse(features), anchors)

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it."""

    def _fuse(self, features: Features) -> Tensor:
        return self.fc(features.tapped.to(self.fc.weight.dtype))

    def _enter(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        embedded = embedding(tokens, self.info.embedding).to(hidden.dtype) * self.info.embedding_scale
        return hidden, self._fused(embedded, hidden)
