"""What a number was made by and on: versions of the packages that decide it, and the device's name."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACKAGES = ("deepspec", "torch", "transformers", "tokenizers", "safetensors")
_CPU_INFO = Path("/proc/cpuinfo")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def commit() -> str | None:
    """The commit of the checkout that this package lies in; None where it lies in none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:  # no git
        return None
    return ran.stdout.strip() or None


def device_name(device: torch.device) -> str:
    """The model of a device, as its maker calls it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else _cpu_name()


def _cpu_name() -> str:
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:  # only Linux has it
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
