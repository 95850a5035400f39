"""The frozen target model."""

from deepspec.target.load import load_target
from deepspec.target.model import Target, fingerprint, make_target
from deepspec.target.packed import KVSlots, Span

__all__ = ["KVSlots", "Span", "Target", "fingerprint", "load_target", "make_target"]
