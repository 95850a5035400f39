"""A drafter that lies in its target's own checkpoint: the target's files, one more, and one index for all."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from deepspec.config import TargetConfig
from deepspec.errors import ConfigError
from deepspec.runs import read_json, write_json
from deepspec.target import Target
from deepspec.target.head import weight_files
from deepspec.target.load import target_source

INDEX = "model.safetensors.index.json"
#: What of a target's folder is no part of a model that is served.
_LEFT_OUT = (".bin", ".pt", ".pth", ".md", ".gguf")


def copy_target(target: Target, folder: Path, without: Collection[str]) -> None:
    """Copy a target's files to ``folder``, ``without`` some tensors; raises ConfigError when it has none."""
    if target.name == "in-memory":
        raise ConfigError("the drafter goes into its target's checkpoint, and this target has no files")
    source = target_source(TargetConfig(name=target.name, revision=target.revision))
    files = weight_files(source)
    if not files:
        raise ConfigError(f"target {target.name!r} has no safetensors files to put the drafter into")
    for path in sorted(files[0].parent.iterdir()):
        if path.is_file() and path.suffix not in _LEFT_OUT and not path.name.startswith("."):
            _copy(path, folder / path.name, without)


def join_index(folder: Path, file: str, tensors: Iterable[str]) -> None:
    """Let the index of the safetensors in ``folder`` name these tensors in ``file`` alone."""
    place = folder / INDEX
    index = read_json(place) if place.is_file() else {"metadata": {}, "weight_map": _names(folder, file)}
    weight_map = {**index["weight_map"], **dict.fromkeys(tensors, file)}
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    write_json(place, {"metadata": {**index["metadata"], "total_size": size}, "weight_map": weight_map})


def _copy(path: Path, to: Path, without: Collection[str]) -> None:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            kept = [name for name in file.keys() if name not in without]  # noqa: SIM118  # it is no mapping
            if len(kept) < len(file.keys()):
                save_file({name: file.get_tensor(name) for name in kept}, to, metadata={"format": "pt"})
                return
    shutil.copyfile(path, to)


def _names(folder: Path, but: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name != but:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path.name)
    return found
