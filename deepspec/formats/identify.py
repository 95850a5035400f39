"""Which of the registered layouts a checkpoint has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepspec.errors import CheckpointError, ConfigError, nearest
from deepspec.formats.header import Header
from deepspec.formats.layout import CheckpointFormat
from deepspec.plugins import create_plugin_manager, part_classes

if TYPE_CHECKING:
    import pluggy


def all_formats(manager: pluggy.PluginManager | None = None) -> list[CheckpointFormat]:
    """One of each registered layout, by name."""
    classes = part_classes(manager or create_plugin_manager(), CheckpointFormat.kind)
    return [cls() for cls in sorted(classes, key=lambda cls: cls.name)]


def identify(header: Header, manager: pluggy.PluginManager | None = None) -> tuple[CheckpointFormat, str]:
    """The layout of a checkpoint, and by what it is told.

    Raises CheckpointError when it is none, which says what was looked for, or when it is several.
    """
    known = all_formats(manager)
    found = [(layout, seen) for layout in known if (seen := layout.recognise(header)) is not None]
    if not found:
        looked = "; ".join(layout.looked_for() for layout in known)
        has = ", ".join(map(str, header.config.get("architectures") or ())) or "none"
        raise CheckpointError(
            f"{header.what} {header.name!r} has no known layout: its architectures are {has}; looked for: "
            f"{looked}"
        )
    if len(found) > 1:
        names = " and ".join(layout.name for layout, _ in found)
        raise CheckpointError(
            f"{header.what} {header.name!r} is claimed by layouts {names}; remove one's plugin"
        )
    return found[0]


def formats_for(name: str, manager: pluggy.PluginManager | None = None) -> list[CheckpointFormat]:
    """The layouts that ``--to`` means by a name; raises ConfigError with the nearest one."""
    known = all_formats(manager)
    found = [layout for layout in known if name in layout.exports]
    if not found:
        names = {export for layout in known for export in layout.exports}
        raise ConfigError(f"--to {name}: no layout is called so; {nearest(name, names)}")
    return found
