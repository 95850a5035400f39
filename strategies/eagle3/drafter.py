"""Eagle 3's drafter: one token a step, from fused target features and then from its own hidden states.

Li et al. 2025 (2503.01840). The first layer's attention reads [norm(embedding of the next token) ;
norm(feature)], its residual stream is the feature; further layers are ordinary. What is fed back is the
hidden state before the final norm. Weight names are the field's shared ones. Options that are off by default
are those of other projects' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import embedding

from deepspec.interfaces import BuildContext, Drafter, Readout, TokenCount
from deepspec.nn import (
    DecoderLayer,
    DraftVocabulary,
    LayerConfig,
    LayerOptions,
    RMSNorm,
    Unroll,
    UnrolledRound,
    UnrolledSlots,
    pass_through_,
)
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch


class Eagle3Config(LayerOptions):
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
    own_head: bool = Field(
        default=False, description="whether it trains a LM head of its own, which starts as the target's"
    )
    own_embedding: bool = Field(
        default=False, description="whether it trains an embedding of its own, which starts as the target's"
    )
    feature_norm: Literal["none", "joint", "each"] = Field(
        default="none",
        description="norm of the tapped layers' outputs before they are fused: of all as one, or of each",
    )
    norm_before_residual: bool = Field(
        default=False, description="whether the residual stream is the feature behind its norm"
    )
    feed_back: Literal["pre_norm", "post_norm"] = Field(
        default="pre_norm",
        description="what the next position reads: the hidden state before or after the final norm",
    )


def spread_layers(num_layers: int) -> tuple[int, ...]:
    """A low, a middle and a high layer of a target of that depth, as the released checkpoints tap."""
    chosen = (1, num_layers // 2 - 1, num_layers - 4)
    return tuple(sorted({min(max(layer, 0), max(num_layers - 2, 0)) for layer in chosen}))


class FusingLayer(DecoderLayer):
    """The first layer, whose attention is twice as wide inwards."""

    def __init__(self, config: LayerConfig, *, norm_before_residual: bool) -> None:
        super().__init__(config, in_size=2 * config.hidden_size)
        self.hidden_norm = RMSNorm(config.hidden_size, config.eps, unit_offset=config.traits.unit_offset)
        self.norm_before_residual = norm_before_residual

    def fused(self, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream ``[..., H]``, and [norm(embedding) ; norm(feature)] ``[..., 2H]``."""
        normed = self.hidden_norm(hidden)
        both = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        return normed if self.norm_before_residual else hidden, both


class Eagle3Drafter(Drafter[UnrolledRound]):
    """Autoregressive drafter over target features; embedding and LM head are mostly the target's, frozen."""

    name = "eagle3"
    reads_last_hidden = False
    Config = Eagle3Config
    config: Eagle3Config
    embedding: nn.Parameter | None

    def __init__(self, config: Eagle3Config, context: BuildContext) -> None:
        super().__init__(config, context)
        info = context.target
        self.info = info
        self._target_layers = config.target_layers or spread_layers(info.num_layers)
        layer = config.layer_config(info)
        size, taps = info.hidden_size, len(self._target_layers)

        def norm(width: int) -> RMSNorm:
            return RMSNorm(width, layer.eps, unit_offset=layer.traits.unit_offset)

        self.input_norm = norm(taps * size) if config.feature_norm == "joint" else nn.Identity()
        each = taps if config.feature_norm == "each" else 0
        self.fc_norm = nn.ModuleList(norm(size) for _ in range(each))
        self.fc = nn.Linear(taps * size, size, bias=False)
        pass_through_(self.fc.weight)
        first = FusingLayer(layer, norm_before_residual=config.norm_before_residual)
        more = [DecoderLayer(layer) for _ in range(config.num_layers - 1)]
        self.layers = nn.ModuleList([first, *more])
        self.norm = norm(size)
        self._fused = first.fused
        self.vocabulary = DraftVocabulary(info, config.draft_vocab_size, own_head=config.own_head)
        own = nn.Parameter(info.embedding.clone()) if config.own_embedding else None
        self.register_parameter("embedding", own)
        self._unroll = Unroll(
            enter=self._enter,
            layers=(first, *more),
            norm=self.norm,
            feeds_back_normed=config.feed_back == "post_norm",
        )

    @property
    def hidden_size(self) -> int:
        return self.info.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return self._target_layers

    def readout(self) -> Readout:
        return self.vocabulary.readout()

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
        tapped = self.input_norm(features.tapped.to(self.fc.weight.dtype))
        if len(self.fc_norm):
            chunks = tapped.chunk(len(self.fc_norm), dim=-1)
            normed = [norm(chunk) for norm, chunk in zip(self.fc_norm, chunks, strict=True)]
            tapped = torch.cat(normed, dim=-1)
        return self.fc(tapped)

    def _enter(self, tokens: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        table = self.info.embedding if self.embedding is None else self.embedding
        embedded = embedding(tokens, table).to(hidden.dtype) * self.info.embedding_scale
        return self._fused(embedded, hidden)
