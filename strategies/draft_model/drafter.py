"""A draft model of its own: any causal language model that the target's code can run, with its own KV slots.

Autoregressive: a step is one packed forward of one token a request. Committed text is fed together with the
next anchors, so that a round costs G forwards; what it wrote past them is overwritten, which is the whole
rollback (Leviathan et al. 2023, 2211.17192).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from deepspec.interfaces import BuildContext, Drafter, PartConfig, Readout
from deepspec.target import PackedDecoder
from deepspec.types import AnchorBlocks, Anchors, Extension, Features, Span, TokenBatch

from .models import configured_model, named_model, small_model


class DraftModelConfig(PartConfig):
    """Which model drafts."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="folder or hub name of a causal language model with the target's tokenizer; "
        "null is a new, small one of the target's width",
    )
    revision: str | None = Field(default=None, description="its commit, branch or tag on the hub")
    num_layers: int = Field(default=2, ge=1, description="layers of the small model")
    architecture: dict[str, Any] | None = Field(
        default=None, description="a new model's whole configuration, as in a model's config.json"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> DraftModelConfig:
        if self.model is not None and self.architecture is not None:
            raise ValueError("give model, whose weights are read, or architecture, for new ones; not both")
        if self.model is None and self.revision is not None:
            raise ValueError("revision is a named model's; give model, too, or leave it out")
        if "num_layers" in self.model_fields_set and (self.model or self.architecture):
            raise ValueError("num_layers is the small model's; leave it out beside model or architecture")
        return self


@dataclass
class Unrolled:
    """Where a round stands: its anchors' spans, and the newest hidden states ``[R, H]``."""

    spans: tuple[Span, ...]
    hidden: Tensor


class DraftModel(Drafter[Unrolled]):
    """A causal language model with the target's tokenizer; its vocabulary may be padded differently.

    Ids that only one of the two has are never drafted (q = 0). A token that the model has no embedding for,
    which real text never has, is read as its last one.
    """

    name = "draft_model"
    reads_last_hidden = False
    Config = DraftModelConfig
    config: DraftModelConfig
    target_ids: Tensor | None

    def __init__(self, config: DraftModelConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.decoder = _model_of(config, context)
        rows, vocab_size = len(self.decoder.lm_head), context.target.vocab_size
        ids = torch.arange(rows) if rows < vocab_size else None
        self.register_buffer("target_ids", ids, persistent=False)
        self._pending: Sequence[tuple[Tensor, tuple[Span, ...]]] = ()

    @property
    def hidden_size(self) -> int:
        return int(self.decoder.config.hidden_size)

    @property
    def target_layers(self) -> tuple[int, ...]:
        return ()

    @property
    def pretrained(self) -> bool:
        return self.config.model is not None

    @property
    def saved_options(self) -> Mapping[str, object]:
        architecture = json.loads(self.decoder.model.config.to_json_string())
        return {"architecture": {key: architecture[key] for key in architecture if key[0] != "_"}}

    def readout(self) -> Readout:
        return Readout(
            weight=self.decoder.lm_head[: self.context.target.vocab_size],
            softcap=self.decoder.softcap,
            target_ids=self.target_ids,
            trained=True,
        )

    def allocate(self, num_slots: int, max_positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self.cache = self.decoder.new_slots(num_slots, max_positions + self.context.draft_length)
        self._pending = ()

    def extend(self, extension: Extension) -> None:
        for tokens, spans in self._pending:
            self._forward(tokens, spans)
        self._pending = ((extension.tokens, extension.spans),)

    def begin(self, anchors: Anchors) -> Unrolled:
        parts = (*self._pending, (anchors.tokens, anchors.spans))
        self._pending = ()
        spans = tuple(span for _, some in parts for span in some)
        hidden = self._forward(torch.cat([tokens for tokens, _ in parts]), spans)
        return Unrolled(anchors.spans, hidden[-len(anchors.spans) :])

    def step(self, state: Unrolled, k: int, previous: Tensor) -> Tensor:
        if k > 0:
            spans = [Span(span.slot, span.start + k, 1) for span in state.spans]
            state.hidden = self._forward(previous, spans, is_settled=False)
        return state.hidden

    def block(self, batch: TokenBatch, features: Features, anchors: AnchorBlocks) -> Tensor:
        known = TokenBatch(self._known(batch.tokens), batch.segments, batch.positions, batch.supervised)
        hidden = self.decoder.read(known).last_hidden
        steps = torch.arange(self.context.draft_length, device=hidden.device)
        columns = (anchors.columns[:, None] + steps).clamp(max=hidden.shape[1] - 1)
        return hidden[anchors.rows[:, None], columns]

    def release(self, slot: int) -> None:
        """Nothing to do: a slot's next request overwrites it."""

    def _forward(self, tokens: Tensor, spans: Sequence[Span], *, is_settled: bool = True) -> Tensor:
        known = self._known(tokens)
        hidden: Tensor = self.decoder(known, spans, self.cache, is_settled=is_settled).last_hidden
        return hidden

    def _known(self, tokens: Tensor) -> Tensor:
        return tokens.clamp(max=len(self.decoder.embedding) - 1)


def _model_of(config: DraftModelConfig, context: BuildContext) -> PackedDecoder:
    if config.architecture is not None:
        return configured_model(config.architecture)
    if config.model is not None:
        return named_model(config.model, config.revision, context.target)
    return small_model(context.target, config.num_layers)
