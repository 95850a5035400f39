"""docs/reference.md is made of the code: hooks with their signatures, keys and options with descriptions."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from deepspec import hookspecs
from deepspec.config import RunConfig
from deepspec.curves import DraftCost, SpsCurve
from deepspec.plugins import create_plugin_manager, list_parts
from deepspec.strategy import PART_KINDS, PartSpec
from tests.watch.snapshot import check_snapshot

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEAD = """# Reference

Made of the code by `UPDATE_SNAPSHOTS=1 make test`; a test compares the two.

## Hooks

A plugin is a module that an entry point of the group `deepspec` names. It implements some of these
functions, each marked with `@deepspec.hookimpl`. The hook API is version {version} (`deepspec.HOOK_API`);
[what that means](plugins.md#hook_api). `deepspec plugins new NAME` writes a plugin to start from.
"""
KEYS = """
## Configuration

The keys of a configuration file, of `--set KEY=VALUE`, and of `deepspec.config.RunConfig`.

| key | type | default | meaning |
|---|---|---|---|
"""
OPTIONS = """
## Options of the shipped parts

Set beside the part's `type`, as in `--set head.rank=64`. Parts that are not listed have none.

| part | option | type | default | meaning |
|---|---|---|---|---|
"""
CURVE = """
## SPS curve

The keys of a curve's file, which `policy.curve` and `deepspec simulate --curve` name.

| key | type | default | meaning |
|---|---|---|---|
"""


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def type_of(field: FieldInfo) -> str:
    """As it is written in the code, with its bounds; a part is given by its name or its options."""
    kind: Any = field.annotation
    if kind is PartSpec:
        return "part"
    text = kind.__name__ if inspect.isclass(kind) and not get_args(kind) else str(kind)
    for module in ("deepspec.strategy.", "deepspec.interfaces.", "typing.Any"):
        text = text.replace(module, "Any" if module == "typing.Any" else "")
    text = re.sub(r"deepspec\.parts\.Token(Id|Count)", "int", text)
    text = re.sub(r"typing\.Annotated\[(\w+), FieldInfo\(.*?\]\)\]", r"\1", text)
    text = re.sub(r"typing\.Optional\[(\w+)\]", r"\1 | None", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"\1", text)
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if hasattr(bound, name)
    ]
    return ", ".join([text, *bounds])


def describe(field: FieldInfo) -> tuple[str, str, str]:
    assert field.description
    return type_of(field), default_of(field), field.description


def default_of(field: FieldInfo) -> str:
    value = field.default
    if field.is_required():
        return "required"
    if isinstance(value, PartSpec):
        return f'`"{value.type}"`'
    return (
        f"`{json.dumps(value.model_dump() if isinstance(value, BaseModel) else value, ensure_ascii=False)}`"
    )


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that can be set, with its field."""
    for name, field in model.model_fields.items():
        inner: Any = field.annotation
        if inspect.isclass(inner) and issubclass(inner, BaseModel) and inner is not PartSpec:
            yield from keys(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def options() -> Iterator[tuple[str, str, FieldInfo]]:
    """Part, option and field, for every registered part that has options."""
    for part in sorted(list_parts(create_plugin_manager()), key=lambda part: part.name):
        cls: Any = pkgutil.resolve_name(part.source) if isinstance(part.source, str) else part.source
        if cls.kind in PART_KINDS:
            yield from ((f"{cls.kind} `{part.name}`", *item) for item in cls.Config.model_fields.items())


def curve_keys() -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a curve, each by its name in the file, with those of drafting."""
    for name, field in SpsCurve.model_fields.items():
        if name == "draft":
            yield from ((f"draft.{key}", inner) for key, inner in DraftCost.model_fields.items())
        else:
            yield field.alias or name, field


def reference() -> str:
    text = HEAD.format(version=hookspecs.HOOK_API)
    for name, hook in vars(hookspecs).items():
        if name.startswith("deepspec_"):
            signature = str(inspect.signature(hook)).replace("'", "")
            text += f"\n### {name}\n\n```text\n{name}{signature}\n```\n\n{inspect.getdoc(hook)}\n"
    text += KEYS + "".join(row(f"`{key}`", *describe(field)) for key, field in keys(RunConfig))
    text += OPTIONS + "".join(row(part, f"`{key}`", *describe(field)) for part, key, field in options())
    text += CURVE + "".join(row(f"`{key}`", *describe(field)) for key, field in curve_keys())
    return text


def test_the_reference_is_what_the_code_says() -> None:
    check_snapshot(reference(), PAGE)
