"""Train and evaluate draft models for speculative decoding.

Everything public is in ``__all__`` and loads on first use, so that ``import deepspec`` stays light. The
names ``train``, ``evaluate`` and ``generate`` are functions here, although packages of the same names
hold their code: import those as ``from deepspec.train import ...``.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepspec.engine import Engine, SamplingParams
    from deepspec.errors import DeepSpecError
    from deepspec.evaluate import calibrate, compare, evaluate
    from deepspec.generate import generate
    from deepspec.hookspecs import HOOK_API, hookimpl
    from deepspec.runs import load
    from deepspec.strategy import Strategy
    from deepspec.target import load_target
    from deepspec.train import train

    __version__: str

__all__ = [
    "HOOK_API",
    "DeepSpecError",
    "Engine",
    "SamplingParams",
    "Strategy",
    "__version__",
    "calibrate",
    "compare",
    "evaluate",
    "generate",
    "hookimpl",
    "load",
    "load_target",
    "train",
]

_HOMES = {
    "HOOK_API": "deepspec.hookspecs",
    "DeepSpecError": "deepspec.errors",
    "Engine": "deepspec.engine",
    "SamplingParams": "deepspec.engine",
    "Strategy": "deepspec.strategy",
    "calibrate": "deepspec.evaluate",
    "compare": "deepspec.evaluate",
    "evaluate": "deepspec.evaluate",
    "generate": "deepspec.generate",
    "hookimpl": "deepspec.hookspecs",
    "load": "deepspec.runs",
    "load_target": "deepspec.target",
    "train": "deepspec.train",
}


class _Package(ModuleType):
    """Keeps the import system from binding the submodule ``train`` over the function ``train``."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("deepspec")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
