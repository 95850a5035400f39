"""The frozen target model, and causal language models over packed rows for drafters that are one."""

from deepspec.target.decoder import PackedDecoder
from deepspec.target.decoding import DecodingTarget
from deepspec.target.kv_slots import KVSlots
from deepspec.target.load import ModelSource, load_target
from deepspec.target.model import Target, fingerprint, make_target

__all__ = [
    "DecodingTarget",
    "KVSlots",
    "ModelSource",
    "PackedDecoder",
    "Target",
    "fingerprint",
    "load_target",
    "make_target",
]
