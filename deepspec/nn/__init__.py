"""Building blocks for drafters, free to use in plugins: layers, slots, anchors, autoregressive unrolling."""

from deepspec.nn.anchor_grid import AnchorGrid, causal
from deepspec.nn.attention import Attend, Attention, DecoderLayer, attention_mask, grouped_attention
from deepspec.nn.blocks import (
    GatedMLP,
    RMSNorm,
    RotaryTable,
    additive_mask,
    apply_rotary,
    pass_through_,
    rotary,
    rotary_table,
)
from deepspec.nn.config import LayerConfig
from deepspec.nn.options import LayerOptions
from deepspec.nn.ragged import RaggedRows, last_rows
from deepspec.nn.slots import SlotStore
from deepspec.nn.unrolled import Unroll, UnrolledRound, UnrolledSlots
from deepspec.nn.vocabulary import DraftVocabulary

__all__ = [
    "AnchorGrid",
    "Attend",
    "Attention",
    "DecoderLayer",
    "DraftVocabulary",
    "GatedMLP",
    "LayerConfig",
    "LayerOptions",
    "RMSNorm",
    "RaggedRows",
    "RotaryTable",
    "SlotStore",
    "Unroll",
    "UnrolledRound",
    "UnrolledSlots",
    "additive_mask",
    "apply_rotary",
    "attention_mask",
    "causal",
    "grouped_attention",
    "last_rows",
    "pass_through_",
    "rotary",
    "rotary_table",
]
