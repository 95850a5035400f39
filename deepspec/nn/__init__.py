"""Building blocks for drafters, free to use in plugins: layers, slots, anchors, autoregressive unrolling."""

from deepspec.nn.anchor_grid import AnchorGrid, causal
from deepspec.nn.attention import Attend, Attention, DecoderLayer, Table, attention_mask, grouped_attention
from deepspec.nn.blocks import (
    RMSNorm,
    RotaryTable,
    SwiGLU,
    additive_mask,
    apply_rotary,
    pass_through_,
    rotary,
    rotary_table,
)
from deepspec.nn.options import LayerConfig
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
    "LayerConfig",
    "RMSNorm",
    "RaggedRows",
    "RotaryTable",
    "SlotStore",
    "SwiGLU",
    "Table",
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
