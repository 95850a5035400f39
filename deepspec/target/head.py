"""A target without its decoder layers: embedding, final norm, LM head and tokenizer.

That is all that training on stored features reads of it. A single layer can still be read from the files,
for a drafter that starts from the target's last ones.
"""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from deepspec.errors import TargetError
from deepspec.target.describe import widest_layer
from deepspec.target.load import (
    ModelSource,
    read_model,
    resolve_device,
    target_dtype,
    target_source,
)
from deepspec.target.model import Target, make_target

if TYPE_CHECKING:
    from deepspec.config import TargetConfig

_SAMPLES, _SAMPLE_BYTES = 1024, 64
#: Of a config.json: what says nothing of what the model computes.
_REMARKS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
#: What stands before ``layers.N.`` in the files of text models, and of those that also see or hear.
_PREFIXES = ("model.", "model.language_model.", "language_model.model.", "")


def load_head(config: TargetConfig, *, device: str | None = None, fingerprint: str) -> Target:
    """The target that :func:`deepspec.target.load_target` would give, without its decoder layers.

    Args:
        fingerprint: what the whole target's is known to be.

    Raises:
        TargetError, ConfigError, ResourceError: as loading all of it.
    """
    place = resolve_device(config.device or device)
    source = target_source(config)
    whole = source.config()
    dtype, bare = target_dtype(config.dtype, place), _without_layers(whole)
    model = source.attempt(lambda: read_model(source.place, bare, dtype, source.options, is_part=True))
    tokenizer = source.load_tokenizer()
    text = whole.get_text_config()
    head = source.attempt(
        lambda: make_target(
            model.to(place),
            tokenizer,
            name=config.name,
            revision=source.commit,
            whole=(text, _bare_layer(whole, widest_layer(text), config.trust_remote_code)),
        )
    )
    files = weight_files(source)
    return replace(
        head,
        fingerprint=fingerprint,
        absent_layer=lambda number: _read_layer(whole, number, files, head.dtype, config.trust_remote_code),
    )


def weight_files(source: ModelSource) -> list[Path]:
    """The safetensors files of a model that has been loaded, by name."""
    folder = Path(source.place)
    if not folder.is_dir():
        found = try_to_load_from_cache(source.place, "config.json", revision=source.revision)
        if not isinstance(found, str):
            raise TargetError(f"{source.what} {source.name!r} is not in the local cache")
        folder = Path(found).parent
    return sorted(folder.glob("*.safetensors"))


def weights_digest(config: TargetConfig) -> str:
    """A short hash of a target's files, which need not be loaded for it: headers, samples, configuration.

    Equal for equal files wherever they lie; other files with the same weights have another.
    """
    files = weight_files(target_source(config))
    if not files:
        raise TargetError(f"target {config.name!r} has no safetensors files")
    settings = json.loads((files[0].parent / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in _REMARKS}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            digest.update(file.read(min(header, size)))
            for number in range(_SAMPLES):
                file.seek(8 + header + (size - 8 - header) * number // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _without_layers(config: Any) -> Any:
    """The configuration of the same model with no decoder layer, and nothing that is made for each."""
    config = deepcopy(config)
    text = config.get_text_config()
    if getattr(text, "layer_types", None):
        text.layer_types = []
    for name in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if getattr(text, name, None):
            setattr(text, name, 0)
    text.num_hidden_layers = 0
    return config


def _bare_layer(config: Any, number: int, trust_remote_code: bool) -> nn.Module:
    """A decoder layer without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=trust_remote_code)
    layer: nn.Module = model.get_decoder().layers[number]
    return layer


def _read_layer(
    config: Any, number: int, files: list[Path], dtype: torch.dtype, trust_remote_code: bool
) -> nn.Module:
    """A decoder layer on the host, an empty module when the files do not name its tensors as it does."""
    layer = _bare_layer(config, number, trust_remote_code)
    names = set(layer.state_dict())
    found = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            held = set(file.keys())
            for prefix in _PREFIXES:
                for name in names:
                    if (full := f"{prefix}layers.{number}.{name}") in held:
                        found[name] = file.get_tensor(full).to(dtype)
    if set(found) != names:
        return nn.Module()
    layer.load_state_dict(found, assign=True)
    return layer.requires_grad_(False)
