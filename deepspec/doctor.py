"""What a bug report needs to know: versions, devices, kernel backend, plugins, cache folder."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from deepspec.environment import device_name
from deepspec.errors import DeepSpecError
from deepspec.paths import cache_root
from deepspec.plugins import BLOCK_VARIABLE, create_plugin_manager, describe_plugins

_PACKAGES = (
    "deepspec",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "datasets",
    "triton",
    "numpy",
    "pydantic",
    "pluggy",
    "typer",
    "rich",
)
_VARIABLES = (
    "DEEPSPEC_HOME",
    "DEEPSPEC_KERNELS",
    "DEEPSPEC_KERNELS_CHECK",
    "DEEPSPEC_CUDA_GRAPHS",
    BLOCK_VARIABLE,
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)


@dataclass(frozen=True)
class Diagnosis:
    """The state of the installation; ``problems`` is empty when all is well."""

    versions: dict[str, str | None]
    python: str
    platform: str
    cpu_threads: int
    devices: list[dict[str, Any]]
    kernel_backend: dict[str, str]
    plugins: list[dict[str, Any]]
    cache: str
    environment: dict[str, str]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine; a plugin that fails is reported under ``problems`` instead of raised."""
    import torch

    problems = []
    plugins: list[dict[str, Any]] = []
    try:
        plugins = describe_plugins(create_plugin_manager())
    except DeepSpecError as error:
        problems.append(str(error))
    devices = _devices()
    kernels = {}
    for row in devices:
        try:
            kernels[row["name"]] = _verify_kernel(row["name"])
        except DeepSpecError as error:
            kernels[row["name"]] = "none"
            problems.append(str(error))
    cache = cache_root()
    if not _writable(cache):
        problems.append(f"cache folder {cache} cannot be written; set DEEPSPEC_HOME to one that can")
    return Diagnosis(
        versions={name: _version(name) for name in _PACKAGES},
        python=sys.version.split()[0],
        platform=platform.platform(),
        cpu_threads=torch.get_num_threads(),
        devices=devices,
        kernel_backend=kernels,
        plugins=plugins,
        cache=str(cache),
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        problems=problems,
    )


def _verify_kernel(device: str) -> str:
    import torch

    from deepspec.kernels import backend_for

    return backend_for(torch.device(device)).name


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    found: list[dict[str, Any]] = [{"name": "cpu", "model": device_name(torch.device("cpu"))}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = round(properties.total_memory / 2**30, 1)
        name = f"cuda:{index}"
        found.append({"name": name, "model": device_name(torch.device(name)), "memory_gib": memory})
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "model": device_name(torch.device("mps"))})
    return found


def _writable(folder: os.PathLike[str]) -> bool:
    from pathlib import Path

    existing = next(parent for parent in (Path(folder), *Path(folder).absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK)
