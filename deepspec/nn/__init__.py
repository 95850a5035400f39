"""Building blocks for drafters, free to use in plugins: norm, rotary positions, MLP, request slots."""

from deepspec.nn.blocks import RMSNorm, SwiGLU, apply_rotary, rotary
from deepspec.nn.slots import SlotStore

__all__ = ["RMSNorm", "SlotStore", "SwiGLU", "apply_rotary", "rotary"]
