"""The MTP drafter: one module, recycled for every position, or one of its own for each.

DeepSeek-V3 (2412.19437) trains such modules with the model; here they are trained against a frozen target,
recursively as FastMTP (2509.18362), or start from those that a model was released with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout, TokenCount
from deepspec.nn import DecoderLayer, DraftVocabulary, LayerConfig, Unroll, UnrolledRound, UnrolledSlots
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, TokenBatch

from .cascade import Cascade, CascadeRound, CascadeSlots
from .module import MTPModule
from .native import read_native


class MTPConfig(PartConfig):
    """Options of the MTP drafter; a size left out is the target's."""

    modules: Literal[1, "each"] = Field(
        default=1, description="1, recycled for every drafted token, or one of its own for each"
    )
    feed_back: Literal["auto", "pre_norm", "post_norm"] = Field(
        default="auto",
        description="what the next position reads: the hidden state before or after the final norm; auto is "
        "as the native weights were made for, else after it",
    )
    native_weights: str | None = Field(
        default=None,
        min_length=1,
        description="folder or hub name of a model whose own MTP module this one starts from",
    )
    draft_vocab_size: TokenCount | None = Field(
        default=None,
        ge=1,
        description="tokens that can be drafted: the most frequent of the training text; null is all",
    )
    intermediate_size: int | None = Field(default=None, ge=1, description="width of the draft MLP")
    num_heads: int | None = Field(default=None, ge=1, description="attention heads")
    num_kv_heads: int | None = Field(default=None, ge=1, description="key/value heads")
    qk_norm: bool = Field(default=True, description="whether queries and keys are normed")
    attention_gate: bool = Field(default=False, description="whether each head's output is gated")

    @model_validator(mode="after")
    def _one_origin(self) -> MTPConfig:
        own = self.model_fields_set & {
            "intermediate_size",
            "num_heads",
            "num_kv_heads",
            "qk_norm",
            "attention_gate",
        }
        if self.native_weights is not None and own:
            raise ValueError(f"native_weights come with their own {', '.join(sorted(own))}; leave that out")
        return self


class MTPDrafter(Drafter[UnrolledRound | CascadeRound]):
    """Autoregressive drafter over the target's last hidden state; embedding and LM head are the target's."""

    name = "mtp"
    Config = MTPConfig
    config: MTPConfig

    def __init__(self, config: MTPConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.info = context.target
        native = None if config.native_weights is None else read_native(config.native_weights)
        if native is not None:
            chosen = {} if config.feed_back == "auto" else {"feed_back": config.feed_back}
            config = config.model_copy(update={**native.options, **chosen, "native_weights": None})
        self.built = config
        self._is_native = native is not None
        number = 1 if config.modules == 1 else context.draft_length
        modules = [MTPModule(self.info, self._layer()) for _ in range(number)]
        if native is not None:
            native.check_positions(self.info.rope.width)
            for module in modules:
                module.load(native.weights)
        self.vocabulary = DraftVocabulary(self.info, config.draft_vocab_size)
        self.depths = nn.ModuleList(modules)
        stacks = tuple(
            Unroll(
                enter=module.enter,
                layers=module.layer,
                norm=module.norm,
                feeds_back_normed=config.feed_back != "pre_norm",
            )
            for module in modules
        )
        self._drafting = stacks[0] if len(stacks) == 1 else Cascade(stacks)

    @property
    def hidden_size(self) -> int:
        return self.info.hidden_size

    @property
    def target_layers(self) -> tuple[int, ...]:
        return ()

    @property
    def pretrained(self) -> bool:
        return self._is_native

    @property
    def saved_options(self) -> Mapping[str, object]:
        return self.built.model_dump(exclude_unset=True)

    def readout(self) -> Readout:
        return self.vocabulary.readout()

    def choose_vocabulary(self, counts: Tensor, required: Sequence[int]) -> float | None:
        return self.vocabulary.choose(counts, required)

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        num_rows = max_positions + self.context.draft_length
        self._slots: UnrolledSlots | CascadeSlots = self._drafting.allocate(
            num_slots, num_rows, dtype=dtype, device=device
        )

    def extend(self, extension: Extension) -> None:
        self._slots.extend(extension, self._start(extension.features))

    def begin(self, anchors: Anchors) -> UnrolledRound | CascadeRound:
        return self._slots.begin(anchors)

    def step(self, state: UnrolledRound | CascadeRound, k: int, previous: Tensor) -> Tensor:
        return state.step(k, previous)

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        return self._drafting.block(batch, self._start(features), anchors)

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it."""

    def _start(self, features: Features) -> Tensor:
        return features.last_hidden.to(next(self.parameters()).dtype)

    def _layer(self) -> DecoderLayer:
        info, config = self.info, self.built
        layer = LayerConfig.of(
            info,
            intermediate_size=config.intermediate_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            qk_norm=config.qk_norm,
            gated=config.attention_gate,
        )
        return DecoderLayer(layer)
