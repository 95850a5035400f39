"""Whether a linear confidence is one to go by: it is trained by a term of the objective, or by nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deepspec.errors import ConfigError
from deepspec.plugins import part_names, resolve_part
from deepspec.train.terms import ObjectiveTerm

if TYPE_CHECKING:
    import pluggy

    from deepspec.strategy import Parts


def is_untrained(parts: Parts, manager: pluggy.PluginManager) -> bool:
    """Whether the head's confidence is linear and stays as it was initialised.

    A term that is not installed, of a run that was trained elsewhere, is taken for one that trains it.
    """
    if parts.head.confidence != "linear":
        return False
    known = part_names(manager, ObjectiveTerm.kind)
    wanted = [name for name, weight in parts.strategy.objective.terms.items() if weight > 0]
    return all(
        name in known and not resolve_part(manager, ObjectiveTerm.kind, name).reads_confidence
        for name in wanted
    )


def check_trained(parts: Parts, manager: pluggy.PluginManager, reader: str) -> None:
    """Raise ConfigError, which says that ``reader`` reads it, when :func:`is_untrained`."""
    if is_untrained(parts, manager):
        raise ConfigError(
            f"{reader} reads the linear confidence of head {parts.head.name!r}, which no objective term "
            "trains; train with --set objective.terms.confidence=1, or use --set head.confidence=row_max"
        )
