"""Building blocks for drafters, free to use in plugins: norm, rotary positions, MLP, slots, anchors."""

from deepspec.nn.anchor_grid import AnchorGrid
from deepspec.nn.blocks import RMSNorm, SwiGLU, additive_mask, apply_rotary, rotary
from deepspec.nn.slots import SlotStore

__all__ = ["AnchorGrid", "RMSNorm", "SlotStore", "SwiGLU", "additive_mask", "apply_rotary", "rotary"]
