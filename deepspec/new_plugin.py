"""``deepspec plugins new``: writes a plugin that works, from the shipped template.

The template is ``assets/plugin-template``, texts with ``$name``, ``$module``, ``$Class`` and ``$hook_api`` in
them. ``plugins/template`` in the repository is what it gives for the name ``template``.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from string import Template

from deepspec.errors import ConfigError
from deepspec.hookspecs import HOOK_API
from deepspec.paths import asset
from deepspec.plugins import create_plugin_manager, describe_plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, folder: Path | None = None) -> Path:
    """Write the plugin ``name``: distribution ``deepspec-NAME`` with a strategy and a head of that name.

    Args:
        name: lower-case letters, digits and single hyphens; what no plugin, strategy or part is called yet.
        folder: where to, ``deepspec-NAME`` when None; it must not hold anything.

    Returns:
        The folder. Raises ConfigError for a name that cannot be had and a folder that cannot be used.
    """
    _check(name)
    folder = folder or Path(f"deepspec-{name}")
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} exists and is not an empty folder; choose another --out")
        for path, text in plugin_files(name).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}; choose another --out") from error
    return folder


def plugin_files(name: str) -> dict[Path, str]:
    """The files of the plugin ``name``, by their paths inside its folder."""
    root, module = asset("plugin-template"), _module(name)
    words = {
        "name": name,
        "module": module,
        "Class": "".join(word.capitalize() for word in name.split("-")),
        "hook_api": HOOK_API,
    }
    found = {}
    for source in sorted(root.rglob("*.in")):
        parts = source.relative_to(root).with_suffix("").parts
        path = Path(*(module if part == "module" else part for part in parts))
        found[path] = Template(source.read_text(encoding="utf-8")).substitute(words)
    return found


def _module(name: str) -> str:
    return f"deepspec_{name.replace('-', '_')}"


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        hint = f"; try {better!r}" if _NAME.fullmatch(better) else ""
        raise ConfigError(
            f"{name!r} cannot name a plugin; allowed are lower-case letters, digits and single hyphens, "
            f"starting with a letter{hint}"
        )
    if name.startswith("deepspec-"):
        short = name.removeprefix("deepspec-")
        raise ConfigError(f"the distribution of plugin NAME is called deepspec-NAME already; give {short!r}")
    for row in describe_plugins(create_plugin_manager()):
        if name in (row["name"], *row["strategies"], *row["parts"]):
            owner = f"plugin {row['name']!r} of {row['distribution']}"
            raise ConfigError(f"{name!r} already names what {owner} brings; choose another name")
    if importlib.util.find_spec(_module(name)):
        raise ConfigError(f"a module {_module(name)!r} is installed; choose another name than {name!r}")
