"""What a checkpoint's files say before a tensor is read: its config.json, and names and shapes of tensors.

Safetensors alone: pickled weights can run code, and are refused with the way to convert them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from safetensors import safe_open
from torch import Tensor

from deepspec.errors import CheckpointError
from deepspec.target import ModelSource

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth"}


@dataclass(frozen=True)
class Header:
    """A checkpoint folder or hub model, of which no tensor is read yet.

    Attributes:
        name: as the user gave it. what: what errors call it, as in ``draft``.
        config: its config.json. files: each tensor's file.
    """

    name: str
    what: str
    config: Mapping[str, Any]
    files: Mapping[str, str]

    def shapes(self, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """The shapes of some tensors."""
        return self._each(names, lambda file, key: tuple(file.get_slice(key).get_shape()))

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Some tensors, on the host, as they are stored."""
        return self._each(names, lambda file, key: file.get_tensor(key))

    def _each(self, names: Iterable[str], get: Any) -> dict[str, Any]:
        wanted = set(names)

        def read() -> dict[str, Any]:
            found = {}
            for place in sorted({self.files[name] for name in wanted}):
                with safe_open(fetched(self.name, place), framework="pt") as file:
                    found.update({key: get(file, key) for key in sorted(wanted) if self.files[key] == place})
            return found

        return _source(self.name, self.what).attempt(read)


def read_header(name: str, what: str = "draft") -> Header:
    """The header of a folder or hub model; ``what`` is what errors call it.

    Raises:
        TargetError: it is not there, or cannot be read. CheckpointError: its weights are pickled.
    """
    source = _source(name, what)
    config = source.attempt(lambda: _read_json(fetched(name, "config.json")))
    if _is_pickled(name):
        raise CheckpointError(_pickled(name, what))
    return Header(name, what, config, source.attempt(lambda: _files(name)))


def fetched(name: str, file: str) -> Path:
    """A file of the folder or hub model, on this machine."""
    folder = Path(name)
    return folder / file if folder.is_dir() else Path(hf_hub_download(name, file))


def _source(name: str, what: str) -> ModelSource:
    return ModelSource(
        what=what,
        name=name,
        revision=None,
        revision_key="the name",
        own_code="its code is never run",
        too_big="free some memory",
    )


def _files(name: str) -> dict[str, str]:
    try:
        return dict(_read_json(fetched(name, _INDEX))["weight_map"])
    except (FileNotFoundError, EntryNotFoundError):
        single = _only_file(Path(name)) if Path(name).is_dir() else _SINGLE
        with safe_open(fetched(name, single), framework="pt") as file:
            return dict.fromkeys(file.keys(), single)


def _only_file(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if len(found) != 1 and _SINGLE not in found:
        raise FileNotFoundError(f"the folder has {len(found)} safetensors files and no {_INDEX}")
    return _SINGLE if _SINGLE in found else found[0]


def _is_pickled(name: str) -> bool:
    folder = Path(name)
    if folder.is_dir():
        has_safe = any(folder.glob("*.safetensors"))
        return not has_safe and any(path.suffix in _PICKLE_SUFFIXES for path in folder.iterdir())
    for safe in (_INDEX, _SINGLE):
        try:
            fetched(name, safe)
        except EntryNotFoundError:
            continue
        except (OSError, HfHubHTTPError, HFValidationError):  # said when the files are read
            return False
        return False
    try:
        return any(HfApi().file_exists(name, file) for file in _PICKLED)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return False


def _pickled(name: str, what: str) -> str:
    convert = (
        "python -c 'import torch, safetensors.torch as s; "
        's.save_file({k: v.contiguous() for k, v in torch.load("pytorch_model.bin", '
        "weights_only=True).items()}, "
        '"model.safetensors")\''
    )
    return (
        f"{what} {name!r} has pickled weights, which can run code and are never read; convert them once, "
        "in its "
        f"folder: {convert}"
    )


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
