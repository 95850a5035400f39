"""Find and load a target by name, folder or commit, and say in one line why it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import errors as hub
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from deepspec.errors import ConfigError, TargetError
from deepspec.paths import asset
from deepspec.target.model import Target, make_target

if TYPE_CHECKING:
    from deepspec.config import TargetConfig

DEMO = "demo"


def load_target(config: TargetConfig, *, device: str | None = None) -> Target:
    """Load a causal language model and its tokenizer, frozen.

    Args:
        config: name (a hub id, a folder, or ``demo``), commit, float type, device.
        device: used when the configuration names none; the best available when both are None.

    Raises:
        TargetError: not there, offline, gated, wrong revision, unreadable, or of an unsupported kind.
        ConfigError: a device that this machine does not have.
    """
    place = resolve_device(config.device or device)
    source = str(asset("demo-target")) if config.name == DEMO else config.name
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    model = _attempt(config, lambda: _load_model(source, _dtype(config.dtype, place), options))
    tokenizer = _attempt(config, lambda: AutoTokenizer.from_pretrained(source, **options))
    commit = getattr(model.config, "_commit_hash", None)
    return make_target(model.to(place), tokenizer, name=config.name, revision=commit or config.revision)


def resolve_device(name: str | None) -> torch.device:
    """The device called ``name``, checked; the best this machine has when None."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown; allowed are cpu, mps, cuda or cuda:N") from None
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= available.get(device.type, 0):
        have = ", ".join(f"{kind} ({count})" for kind, count in available.items() if count)
        raise ConfigError(f"device {name!r} is not on this machine; available: {have}")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    return torch.float32 if device.type == "cpu" else "auto"


def _load_model(source: str, dtype: torch.dtype | str, options: dict[str, Any]) -> Any:
    quiet = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, use_safetensors=True, **options)
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()


def _attempt(config: TargetConfig, load: Any) -> Any:
    """Run a loader and turn what can go wrong into one line that says which."""
    name = config.name
    at = f" at revision {config.revision}" if config.revision else ""
    try:
        return load()
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise TargetError(_reason(error, name, at)) from error


def _reason(error: BaseException, name: str, at: str) -> str:
    causes = list(_chain(error))
    folder = Path(name)
    if any(isinstance(c, hub.GatedRepoError) for c in causes):
        return f"target {name!r} is gated; request access on its page and log in with `hf auth login`"
    if any(isinstance(c, hub.RevisionNotFoundError) for c in causes):
        return f"target {name!r} has no revision {at[13:]!r}; give --target-revision an existing branch, tag or commit"
    if any(isinstance(c, hub.RepositoryNotFoundError) for c in causes):
        return f"target {name!r} was not found on the hub; check the spelling, or log in if it is private"
    if "trust_remote_code" in str(error):
        return f"target {name!r} needs its own code to load; pass --trust-remote-code if you trust it"
    if folder.is_dir():
        missing = [f for f in ("config.json",) if not (folder / f).exists()]
        detail = f"it has no {missing[0]}" if missing else _first_line(error)
        return f"target folder {name!r} cannot be read: {detail}"
    if folder.is_absolute() or name.startswith("."):
        return f"target folder {name!r} does not exist; give a folder with config.json and safetensors, or a hub id"
    return (
        f"target {name!r}{at} could not be loaded: it is not in the local cache and the hub cannot be reached "
        f"(offline?), or it is unreadable; use a local folder, or `demo`. {_first_line(error)}"
    )


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
