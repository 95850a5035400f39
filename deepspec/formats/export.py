"""Writes a drafter in another project's layout, with a card that says what it is and how to serve it.

What was written is read back before it is called done. Where an engine was named, only what that engine can
load is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepspec.composed import Composed
from deepspec.errors import CheckpointError, ConfigError
from deepspec.formats.card import model_card
from deepspec.formats.foreign import read_foreign
from deepspec.formats.identify import all_formats, formats_for
from deepspec.formats.layout import CheckpointFormat, Draft, EngineVerdict, SharedCopy, Written
from deepspec.formats.opened import Origin
from deepspec.formats.schedule import schedule_files
from deepspec.formats.stitch import copy_target, join_index
from deepspec.resources import writing
from deepspec.runs import Run, write_json
from deepspec.target import Target

_WEIGHTS = "model.safetensors"
#: Of a drafter that lies in the target's own checkpoint.
_STITCHED = "model-draft.safetensors"
_ENGINES = ("vllm", "sglang")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        format: the layout's name. engines: who can load it. files: in the folder.
    """

    folder: Path
    format: str
    engines: tuple[EngineVerdict, ...]
    files: tuple[str, ...]
    served: Mapping[str, str]

    @property
    def commands(self) -> dict[str, str]:
        """For each engine the line that serves it, or why there is none."""
        return {one.engine: self.served[one.engine] or f"cannot load it: {one.why}" for one in self.engines}

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        engines = {one.engine: {"loads": one.loads, "why": one.why} for one in self.engines}
        commands = {engine: line for engine, line in self.served.items() if line}
        return {
            "schema": 1,
            "folder": str(self.folder),
            "layout": self.format,
            "files": list(self.files),
            "engines": engines,
            "commands": commands,
        }


def check_export(to: str, out: Path, dtype: str | None) -> torch.dtype | None:
    """Check what can be without a drafter, before one is loaded: the float type that ``dtype`` names.

    Raises ConfigError for a name of neither, CheckpointError where ``out`` is not free.
    """
    formats_for(to)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not an empty folder; choose another --out")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"--dtype {dtype}: allowed are {', '.join(_DTYPES)}")
    return None if dtype is None else _DTYPES[dtype]


def export(
    subject: Run | Composed,
    to: str,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    target_name: str | None = None,
    sps: Path | None = None,
) -> Exported:
    """Write a drafter to the folder ``out``.

    Args:
        subject: a loaded run, or another project's checkpoint.
        to: what ``--to`` names: a layout's project, or an engine, which then has to be able to load it.
        dtype: of the weights; None: as they are stored.
        target_name: what others call the target; None: its name here.
        sps: a curve's file, for an engine that schedules by it.

    Raises:
        ConfigError: no layout of that name holds such a drafter. CheckpointError: ``out`` is not free.
        ResourceError: it cannot be written.
    """
    target, name = subject.target, target_name or subject.target.name
    layout = _layout_for(to, subject)
    origin = subject.origin if isinstance(subject, Composed) else None
    same = origin if origin is not None and origin.format == layout.name else None
    draft = Draft(subject.parts, target, name, {} if same is None else same.fields)
    written = layout.write(draft)
    tensors = dict(written.tensors) if same is None else _as_it_was(written, same, target)
    check_export(to, out, None)
    partial = out.with_name(f".{out.name}.partial")
    with writing(out, lambda: "choose another --out, or make room"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            kinds = {} if same is None else same.dtypes
            if written.with_target:
                copy_target(target, partial, tensors)
            save(partial, written, tensors, dtype=dtype, kinds=kinds)
            foreign = read_foreign(str(partial), "export")
            engines = foreign.format.engines(foreign.header, foreign.layout)
            _check_engine(to, engines)
            kinds_read = {kind for one in engines for kind in one.scheduling}
            beside = schedule_files(subject, partial, kinds_read, sps)
            command: dict[str, str] = {one.engine: served(one, name, out, beside) for one in engines}
            card = model_card(subject, foreign, name, engines, command)
            (partial / "README.md").write_text(card, encoding="utf-8")
            if out.exists():
                out.rmdir()
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    files = tuple(sorted(path.name for path in out.iterdir()))
    return Exported(out, layout.name, engines, files, command)


def save(
    folder: Path,
    written: Written,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None,
    kinds: Mapping[str, torch.dtype],
) -> None:
    """Put config.json and weights into ``folder``, the latter beside the target's where they belong to it."""
    on_host = {
        name: _stored(tensor, dtype or kinds.get(name)).to("cpu", copy=True).contiguous()
        for name, tensor in tensors.items()
    }
    file = _STITCHED if written.with_target else _WEIGHTS
    save_file(on_host, folder / file, metadata={"format": "pt"})
    if written.with_target:
        join_index(folder, file, on_host)
    kind = next((tensor.dtype for tensor in on_host.values() if tensor.is_floating_point()), torch.float32)
    named = {"dtype", "torch_dtype"} & written.config.keys()
    stated = {} if named else {"dtype": str(kind).removeprefix("torch.")}
    write_json(folder / "config.json", {**written.config, **stated})


def served(verdict: EngineVerdict, target: str, folder: Path, files: Mapping[str, str]) -> str:
    """The line that serves a drafter, its places filled in; ``files`` are those that it schedules by."""
    line = verdict.command.replace("{target}", target).replace("{draft}", str(folder))
    named = [f"{flag} {folder / files[kind]}" for kind, flag in verdict.scheduling.items() if kind in files]
    return " ".join([line, *named]) if line else ""


def _layout_for(to: str, subject: Run | Composed) -> CheckpointFormat:
    """The layout of that name that holds the drafter."""
    asked = formats_for(to)
    faults = {layout: layout.cannot_hold(subject.parts) for layout in asked}
    fit = [layout for layout, fault in faults.items() if fault is None]
    if fit:
        return fit[0]
    near = [
        fault for fault in faults.values() if fault is not None and not fault.endswith("none of its kind")
    ]
    said = near[0] if near else f"no layout of it is for drafter {subject.parts.drafter.name!r}"
    others = sorted(
        {
            export
            for layout in all_formats()
            if layout not in asked and layout.cannot_hold(subject.parts) is None
            for export in layout.exports
            if export != to
        }
    )
    instead = f"; it can go --to {', '.join(others)}" if others else ""
    raise ConfigError(f"--to {to}: {said}{instead}")


def _as_it_was(written: Written, origin: Origin, target: Target) -> dict[str, Tensor]:
    """The tensors of a checkpoint that is written again in its own layout: those that it had."""
    tensors = dict(written.tensors)
    for copy in origin.copies:
        tensors.setdefault(copy.tensor, _copied(copy, target))
    return {name: tensors[name] for name in origin.dtypes}


def _copied(copy: SharedCopy, target: Target) -> Tensor:
    return target.info.embedding if copy.of == "embedding" else target.info.lm_head


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(dtype) if dtype is not None and tensor.is_floating_point() else tensor.detach()


def _check_engine(to: str, engines: tuple[EngineVerdict, ...]) -> None:
    verdict = next((one for one in engines if one.engine == to), None)
    if to in _ENGINES and verdict is not None and verdict.loads is False:
        raise ConfigError(f"--to {to}: {to} cannot load this drafter: {verdict.why}")
