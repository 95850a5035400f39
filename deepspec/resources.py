"""Memory and disks that run out end a run in one line, which says what to lower or what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from deepspec.errors import ResourceError

#: How CUDA, MPS, torch's CPU allocator, the operating system and CUDA's libraries put it.
_NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "ALLOC_FAILED")


def size_text(num_bytes: float) -> str:
    """In the unit that leaves one to three digits before the point, as disks are sold: 1.5 GB is 1.5e9."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    power = 0
    while num_bytes >= 999.5 and power < len(units) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.3g} {units[power]}"


@contextmanager
def memory(message: Callable[[], str]) -> Iterator[None]:
    """Raise ResourceError with ``message()`` when memory runs out inside.

    Of nested ones the outermost speaks: it knows best what the user can set.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        raise ResourceError(message()) from error


@contextmanager
def writing(path: Path, advice: Callable[[], str]) -> Iterator[None]:
    """Raise ResourceError that ends in ``advice()`` when ``path`` cannot be written inside."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"{path} cannot be written: {error}; {advice()}") from error


def _is_out_of_memory(error: BaseException | None) -> bool:
    if isinstance(error, ResourceError):
        return _is_out_of_memory(error.__cause__)
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)
