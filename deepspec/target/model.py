"""The frozen target: any Hugging Face decoder, unmodified, run over packed rows.

Gives hidden states and tapped features for packed requests (with KV slots) and for training batches
(without), and logits for chosen rows. Never samples, never trains.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from deepspec.errors import ConfigError, TargetError
from deepspec.interfaces import TargetInfo
from deepspec.resources import memory
from deepspec.target.packed import ATTENTION_NAME, KVSlots, plan_step, span_rows
from deepspec.types import Features, Span, TokenBatch

logger = logging.getLogger(__name__)

_FINGERPRINT_VALUES = 64


@dataclass(frozen=True)
class Target:
    """A frozen model with what drafters and the engine need to know of it.

    Attributes:
        model: the Hugging Face model, in evaluation mode, without gradients.
        info: sizes and shared weights.
        tokenizer: its tokenizer, or None for a bare model.
        name: as the user gave it. revision: the commit, when known. fingerprint: of the weights.
        stop_token_ids: tokens that end a text.
    """

    model: PreTrainedModel
    info: TargetInfo
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None
    fingerprint: str
    stop_token_ids: tuple[int, ...]

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
        return KVSlots(num_slots, max_positions)

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse taps that do not exist, and the last layer (libraries disagree on what its output is)."""
        last = self.info.num_layers - 1
        for layer in layers:
            if not 0 <= layer < last:
                raise ConfigError(
                    f"target layer {layer} cannot be tapped; allowed are 0..{last - 1} of {last + 1} layers, "
                    "never the last (a drafter that wants its output reads features.last_hidden)"
                )

    def forward(
        self, tokens: Tensor, spans: Sequence[Span], cache: KVSlots | None, layers: Sequence[int]
    ) -> Features:
        """One packed forward.

        Args:
            tokens: int64 ``[T]``, the spans' tokens one after the other.
            spans: which request and positions they are.
            cache: KV slots to read and write, or None to attend inside each span only.
            layers: decoder layers to tap.

        Returns:
            Features with ``[T, K*D]`` and ``[T, D]``.

        Raises:
            ResourceError: not enough memory for the rows, or for the slots, which their first use allocates.
        """
        device = self.device
        plan = plan_step(spans, device, cache)
        slots, positions = (torch.from_numpy(part).to(device) for part in span_rows(spans))
        if cache is not None:
            cache.index = slots * cache.max_positions + positions
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

    @torch.no_grad()
    def features(self, batch: TokenBatch, layers: Sequence[int]) -> Features:
        """Features ``[S, L, K*D]`` and ``[S, L, D]`` of training text; padding rows are zero.

        Documents packed into one row do not see each other.
        """
        rows, length = batch.tokens.shape
        spans, columns = _document_spans(batch)
        if len(columns) == rows * length:
            packed = self.forward(batch.tokens.flatten(), spans, None, layers)
            return Features(
                packed.tapped.unflatten(0, (rows, length)), packed.last_hidden.unflatten(0, (rows, length))
            )
        index = torch.tensor(columns, device=batch.tokens.device)
        packed = self.forward(batch.tokens.flatten()[index], spans, None, layers)
        return Features(*(_spread(part, index, rows, length) for part in (packed.tapped, packed.last_hidden)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of last hidden states ``[..., D]``: the LM head and the final soft-cap."""
        logits = nn.functional.linear(hidden, self.info.lm_head)
        cap = self.info.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)


def _needs_memory(num_rows: int, cache: KVSlots | None) -> str:
    if cache is None:
        return f"memory ran out in a target forward of {num_rows} rows; give it fewer"
    return (
        f"memory ran out in a target forward of {num_rows} rows with {cache.num_slots} KV slots of "
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


def make_target(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str = "in-memory",
    revision: str | None = None,
) -> Target:
    """Freeze a loaded model as a target.

    Raises:
        TargetError: a decoder whose layers keep another state than keys and values, or whose logits are
            more than a LM head and a soft-cap.
    """
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    other = kinds - {"full_attention", "sliding_attention"}
    if other:
        raise TargetError(
            f"{name} has {', '.join(sorted(other))} layers; supported are full and sliding attention"
        )
    model.set_attn_implementation(ATTENTION_NAME)
    if extras := _attention_extras(model, config):
        logger.info(
            "%s has attention with %s, for which there is no fused kernel: scores are computed plainly",
            name,
            " and ".join(extras),
        )
    target = Target(
        model=model,
        info=_describe(model, config, tokenizer),
        tokenizer=tokenizer,
        name=name,
        revision=revision,
        fingerprint=fingerprint(model),
        stop_token_ids=_stop_tokens(model, tokenizer),
    )
    _check_readout(target)
    return target


def _describe(model: PreTrainedModel, config: Any, tokenizer: PreTrainedTokenizerBase | None) -> TargetInfo:
    embedding = model.get_input_embeddings()
    heads = config.num_attention_heads
    return TargetInfo(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=getattr(config, "rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(config),
        max_positions=config.max_position_embeddings,
        mask_token_id=_mask_token(config.vocab_size, tokenizer),
        embedding=embedding.weight,
        embedding_scale=float(getattr(embedding, "embed_scale", 1.0)),
        lm_head=model.get_output_embeddings().weight,
        final_softcap=getattr(config, "final_logit_softcapping", None),
    )


def _attention_extras(model: PreTrainedModel, config: Any) -> list[str]:
    """What this model's attention has that ``packed_attention`` computes without SDPA."""
    has_softcap = getattr(config, "attn_logit_softcapping", None) is not None
    has_sinks = any(getattr(module, "sinks", None) is not None for module in model.modules())
    return [name for name, has in (("a soft-cap", has_softcap), ("sinks", has_sinks)) if has]


def _rope_theta(config: Any) -> float:
    parameters = getattr(config, "rope_parameters", None) or {}
    for candidate in (parameters, parameters.get("full_attention", {})):
        if "rope_theta" in candidate:
            return float(candidate["rope_theta"])
    return float(getattr(config, "rope_theta", None) or 10_000.0)


def _mask_token(vocab_size: int, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """The tokenizer's mask token, else the first id past its vocabulary when the embedding is padded."""
    if tokenizer is None:
        return None
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    return len(tokenizer) if len(tokenizer) < vocab_size else None


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
        flat = tensor.detach().flatten()
        sample = flat[:: max(1, flat.numel() // _FINGERPRINT_VALUES)][:_FINGERPRINT_VALUES]
        digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _check_readout(target: Target) -> None:
    """Compare our logits with the model's own on a few tokens, once."""
    count = min(3, target.info.vocab_size)
    tokens = torch.arange(count, device=target.device)
    span = [Span(slot=0, start=0, length=count)]
    ours = target.logits(target.forward(tokens, span, None, ()).last_hidden)
    plan = plan_step(span, target.device, None)
    theirs = target.model(
        input_ids=tokens[None], position_ids=tokens[None], use_cache=False, packed=plan
    ).logits[0]
    scale = theirs.float().abs().max().clamp(min=1.0)
    if not torch.allclose(ours.float() / scale, theirs.float() / scale, atol=2e-2):
        raise TargetError(
            f"{target.name} computes logits by more than its LM head and a soft-cap, which is not supported"
        )
