"""The frozen target model."""

from deepspec.target.decoding import DecodingTarget
from deepspec.target.load import load_target
from deepspec.target.model import Target, fingerprint, make_target
from deepspec.target.packed import KVSlots

__all__ = ["DecodingTarget", "KVSlots", "Target", "fingerprint", "load_target", "make_target"]
