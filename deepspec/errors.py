"""The errors that DeepSpec raises on purpose. Each says what was given, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeepSpecError(Exception):
    """Base of every deliberate error; the command line prints it in one line."""

    #: Whether every process of a distributed run knows of it.
    is_told = False


class ConfigError(DeepSpecError, ValueError):
    """A setting, strategy or part that does not exist or does not fit the others."""


class DataError(DeepSpecError, ValueError):
    """A prompt or training file that cannot be used; the message names file and line."""


class TargetError(DeepSpecError):
    """A target, or another model, that cannot be loaded, or that an option does not fit."""


class CheckpointError(DeepSpecError):
    """A run folder or checkpoint that cannot be read, resumed or overwritten."""


class PluginError(DeepSpecError):
    """A plugin that fails to import, register, or that clashes with another."""


class TrainingError(DeepSpecError):
    """A training run that had to stop (a loss that is not a number, a signal)."""


class ServerError(DeepSpecError):
    """A server that cannot be reached, or that fails request after request."""


class ResourceError(DeepSpecError):
    """Memory or disk that ran out; the message says what to lower or what to do."""


class DistributedError(DeepSpecError):
    """Another process of a distributed run that did not come, or is gone."""


class ElsewhereError(DeepSpecError):
    """This process ends because of an error in another one, which tells it."""

    is_told = True


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a lookup error: the known names, and the closest one when there is one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"known: {', '.join(names) or 'none'}{hint}"
