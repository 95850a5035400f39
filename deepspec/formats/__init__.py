"""Other projects' checkpoints: which layout a folder has, reading it, writing it, saying who can load it.

A layout is a :class:`CheckpointFormat`. A plugin adds one by returning its class from ``deepspec_parts``.
"""

from deepspec.formats.decoder import decoder_config, is_plain, layer_fault, layer_options
from deepspec.formats.header import Header, read_header
from deepspec.formats.layout import (
    TARGET_COPIES,
    CheckpointFormat,
    Draft,
    EngineVerdict,
    Layout,
    SharedCopy,
    TargetClaim,
    Written,
    kept_config,
)
from deepspec.formats.names import NameTable, Rule
from deepspec.formats.serving import sglang_command, vllm_command
from deepspec.formats.speculators import speculators_claim, speculators_config
from deepspec.formats.taps import check_layers, check_taps
from deepspec.formats.vocabulary import VOCABULARY, membership

__all__ = [
    "TARGET_COPIES",
    "VOCABULARY",
    "CheckpointFormat",
    "Draft",
    "EngineVerdict",
    "Header",
    "Layout",
    "NameTable",
    "Rule",
    "SharedCopy",
    "TargetClaim",
    "Written",
    "check_layers",
    "check_taps",
    "decoder_config",
    "is_plain",
    "kept_config",
    "layer_fault",
    "layer_options",
    "membership",
    "read_header",
    "sglang_command",
    "speculators_claim",
    "speculators_config",
    "vllm_command",
]
