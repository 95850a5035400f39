"""Any Hugging Face causal language model, unmodified, run over packed rows: what a target runs through, and a
drafter that is such a model itself.

Gives hidden states and tapped features of packed requests (with KV slots) and of training text (without),
and logits of chosen rows. Gradients flow wherever the weights ask for them. Never samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from deepspec.errors import TargetError
from deepspec.resources import memory
from deepspec.target.kv_slots import KVSlots
from deepspec.target.packed import ATTENTION_NAME, plan_step, span_rows
from deepspec.target.quantized import dense_embedding, dense_matrix, plain_weight
from deepspec.target.recurrent import pack_mixer
from deepspec.types import Features, Span, TokenBatch

logger = logging.getLogger(__name__)


@contextmanager
def without_notices() -> Iterator[None]:
    """Keep transformers' own notices, which would stand beside our one line, off the terminal."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


class PackedDecoder(nn.Module):
    """A causal language model over packed rows; its weights are this module's, under ``model.``.

    Args:
        model: its attention is replaced by one that knows requests. name: what logs and errors call it.

    Raises:
        TargetError: layers that are neither attention nor recurrent as gated delta nets are.
    """

    def __init__(self, model: PreTrainedModel, *, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.config: Any = model.config.get_text_config()
        self._dense_embedding: Tensor
        self._dense_lm_head: Tensor
        self.is_recurrent = _pack_recurrent(model, self.config, name)
        model.set_attn_implementation(ATTENTION_NAME)
        self._hold_dense()
        if extras := self._attention_extras():
            logger.info(
                "%s has attention with %s, for which there is no fused kernel: scores are computed plainly",
                name,
                " and ".join(extras),
            )

    @classmethod
    def configured(cls, architecture: Mapping[str, Any], *, name: str) -> PackedDecoder:
        """One with new weights, by what a model's ``config.json`` holds; errors are transformers' own."""
        values = dict(architecture)
        with without_notices():
            config = AutoConfig.for_model(values.pop("model_type", None), **values)
            return cls(AutoModelForCausalLM.from_config(config), name=name)

    @property
    def embedding(self) -> Tensor:
        """``[V, D]``."""
        weight = plain_weight(self.model.get_input_embeddings())
        return self._dense_embedding if weight is None else weight

    @property
    def lm_head(self) -> Tensor:
        """``[V, D]``."""
        weight = plain_weight(self.model.get_output_embeddings())
        return self._dense_lm_head if weight is None else weight

    @property
    def embedding_scale(self) -> float:
        """What embeddings are multiplied by before the first layer."""
        return float(getattr(self.model.get_input_embeddings(), "embed_scale", 1.0))

    @property
    def softcap(self) -> float | None:
        """c in c*tanh(x/c) on its logits, or None."""
        return getattr(self.config, "final_logit_softcapping", None)

    def new_slots(self, num_slots: int, max_positions: int) -> KVSlots:
        """KV slots for that many requests of at most that many positions."""
        return KVSlots(num_slots, max_positions, self.name)

    def forward(
        self,
        tokens: Tensor,
        spans: Sequence[Span],
        cache: KVSlots | None,
        layers: Sequence[int] = (),
        *,
        is_settled: bool = True,
    ) -> Features:
        """One packed forward; rows of a cached span see their slot's earlier positions.

        Args:
            tokens: int64 ``[T]``, the spans' tokens one after the other.
            spans: which request and positions they are. Keys and values are written before they are read, so
                a position of a slot may come in one span and be seen by another.
            cache: KV slots to read and write, or None to attend inside each span only. Forgetting a length
                is the whole rollback: later writes to a position replace earlier ones.
            layers: decoder layers to tap.
            is_settled: whether all that comes before the spans is final; a recurrent layer's state goes back
                no further. False while a draft model drafts.

        Returns:
            Features with ``[T, K*D]`` and ``[T, D]``.

        Raises:
            ResourceError: not enough memory for the rows, or for the slots, which their first use allocates.
            TargetError: a span that starts where a recurrent layer's state cannot go back to.
        """
        device = self.embedding.device
        plan = plan_step(spans, device, cache, is_recurrent=self.is_recurrent, is_settled=is_settled)
        slots, positions = (torch.from_numpy(part).to(device) for part in span_rows(spans))
        if cache is not None:
            cache.begin(slots * cache.max_positions + positions)
        decoder = self.model.get_decoder()
        with memory(lambda: _needs_memory(len(tokens), cache)), _Taps(decoder.layers, layers) as taps:
            output = decoder(
                input_ids=tokens[None],
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=cache is not None,
                packed=plan,
            )
        last = output.last_hidden_state[0]
        return Features(tapped=taps.features(last), last_hidden=last)

    def read(self, batch: TokenBatch, layers: Sequence[int] = ()) -> Features:
        """Features ``[S, L, K*D]`` and ``[S, L, D]`` of training text; padding rows are zero.

        Documents packed into one row do not see each other.
        """
        rows, length = batch.tokens.shape
        spans, columns = _document_spans(batch)
        if len(columns) == rows * length:
            packed = self(batch.tokens.flatten(), spans, None, layers)
            return Features(
                packed.tapped.unflatten(0, (rows, length)), packed.last_hidden.unflatten(0, (rows, length))
            )
        index = torch.tensor(columns, device=batch.tokens.device)
        packed = self(batch.tokens.flatten()[index], spans, None, layers)
        return Features(*(_spread(part, index, rows, length) for part in (packed.tapped, packed.last_hidden)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of last hidden states ``[..., D]``: the LM head and the final soft-cap."""
        logits = nn.functional.linear(hidden, self.lm_head)
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @torch.no_grad()
    def check_readout(self) -> None:
        """Compare :meth:`logits` with the model's own on a few tokens.

        Raises:
            TargetError: the model's logits are more than a LM head and a soft-cap.
        """
        count = min(3, len(self.embedding))
        tokens = torch.arange(count, device=self.embedding.device)
        span = [Span(slot=0, start=0, length=count)]
        ours = self.logits(self(tokens, span, None).last_hidden)
        plan = plan_step(span, tokens.device, None)
        theirs = self.model(
            input_ids=tokens[None], position_ids=tokens[None], use_cache=False, packed=plan
        ).logits[0]
        scale = theirs.float().abs().max().clamp(min=1.0)
        if not torch.allclose(ours.float() / scale, theirs.float() / scale, atol=2e-2):
            raise TargetError(
                f"{self.name} computes logits by more than its LM head and a soft-cap, which is not supported"
            )

    def _hold_dense(self) -> None:
        """Embedding and LM head as matrices where they are quantised."""
        inward, outward = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        size, device = self.config.hidden_size, next(self.model.parameters()).device
        embedding = lm_head = None
        if plain_weight(inward) is None:
            embedding = dense_embedding(inward, self.config.vocab_size, self.embedding_scale, device)
        self.register_buffer("_dense_embedding", embedding, persistent=False)
        if plain_weight(outward) is None:
            lm_head = dense_matrix(outward, size, self.embedding.dtype, device)
        self.register_buffer("_dense_lm_head", lm_head, persistent=False)
        if embedding is not None or lm_head is not None:
            logger.info("%s has a quantised embedding or LM head, which is kept as a matrix, too", self.name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedDecoder:
        """Move or convert; buffers (rotary frequencies, say) keep the float type that they were made in."""
        kept = [(owner, *found) for owner in self.modules() for found in owner.named_buffers(recurse=False)]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        for owner, name, buffer in kept:
            if buffer.is_floating_point():
                setattr(owner, name, buffer.to(getattr(owner, name).device))
        return self

    def _attention_extras(self) -> list[str]:
        """What this model's attention has that ``packed_attention`` computes without SDPA."""
        has_softcap = getattr(self.config, "attn_logit_softcapping", None) is not None
        has_sinks = any(getattr(module, "sinks", None) is not None for module in self.model.modules())
        return [name for name, has in (("a soft-cap", has_softcap), ("sinks", has_sinks)) if has]


def _pack_recurrent(model: PreTrainedModel, config: Any, name: str) -> bool:
    """Whether there are recurrent layers, which then know requests; raises TargetError for other kinds."""
    kinds = getattr(config, "layer_types", None) or ()
    recurrent = [i for i, kind in enumerate(kinds) if kind == "linear_attention"]
    other = set(kinds) - {"full_attention", "sliding_attention", "linear_attention"}
    layers = model.get_decoder().layers
    if other or not all(pack_mixer(layers[i]) for i in recurrent):
        raise TargetError(
            f"{name} has {', '.join(sorted(other) or ['linear_attention'])} layers of a kind that is not "
            "supported; supported are full and sliding attention, and gated delta nets"
        )
    return bool(recurrent)


def _needs_memory(num_rows: int, cache: KVSlots | None) -> str:
    if cache is None:
        return f"memory ran out in a forward of {num_rows} rows; give it fewer"
    return (
        f"memory ran out in a forward of {num_rows} rows with {cache.num_slots} KV slots of "
        f"{cache.max_positions} positions; lower max_batch or max_positions"
    )


class _Taps:
    """Captures the outputs of some decoder layers while it is open."""

    def __init__(self, decoder_layers: nn.ModuleList, layers: Sequence[int]) -> None:
        self._layers = [decoder_layers[i] for i in layers]
        self._captured: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> _Taps:
        for number, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._keep(number)))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, number: int) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._captured[number] = output if isinstance(output, Tensor) else output[0]

        return hook

    def features(self, like: Tensor) -> Tensor:
        """The captured outputs side by side ``[T, K*D]``."""
        if not self._layers:
            return like.new_zeros((len(like), 0))
        return torch.cat([self._captured[i][0] for i in range(len(self._layers))], dim=-1)


def _document_spans(batch: TokenBatch) -> tuple[list[Span], list[int]]:
    """Each document as a span, and the flat columns of all real tokens."""
    segments = batch.segments.tolist()
    length = len(segments[0])
    spans: list[Span] = []
    columns: list[int] = []
    for row, ids in enumerate(segments):
        begin = 0
        for end in range(1, length + 1):
            if end == length or ids[end] != ids[begin]:
                if ids[begin] >= 0:
                    spans.append(Span(slot=0, start=0, length=end - begin))
                    columns += range(row * length + begin, row * length + end)
                begin = end
    return spans, columns


def _spread(packed: Tensor, index: Tensor, rows: int, length: int) -> Tensor:
    full = packed.new_zeros((rows * length, packed.shape[-1]))
    full[index] = packed
    return full.unflatten(0, (rows, length))
