"""Layer ids as checkpoints write them: from 0 or from 1, and the silent mistakes that a file shows."""

from __future__ import annotations

from collections.abc import Sequence

from deepspec.errors import ConfigError
from deepspec.formats.header import Header


def check_layers(where: str, ids: Sequence[int], num_layers: int | None, *, shift: int = 0) -> list[int]:
    """0-based decoder layers of ids that count from ``shift``; raises ConfigError for some off by one."""
    layers = [int(i) - shift for i in ids]
    if min(layers) < 0:
        off = "" if shift == 0 else ", unless the ids count from 0, which this layout does not"
        raise ConfigError(f"{where}: layer id {min(ids)} is the embedding, which cannot be tapped{off}")
    if num_layers is not None and max(layers) >= num_layers - 1:
        raise ConfigError(
            f"{where}: layer id {max(ids)} is past the last that drafters tap, {num_layers - 2 + shift} of "
            f"{num_layers} layers; this layout counts them from {shift}, and these ids seem to count from "
            f"{shift + 1}"
        )
    return layers


def check_taps(header: Header, num_taps: int, hidden_size: int) -> None:
    """Raise ConfigError unless ``fc`` takes as many layers as are named."""
    if "fc.weight" in header.files:
        width = header.shapes(["fc.weight"])["fc.weight"][1]
        if width != num_taps * hidden_size:
            raise ConfigError(
                f"{header.what} {header.name!r}: fc takes {width / hidden_size:g} layers of width "
                f"{hidden_size}, "
                f"and {num_taps} are named"
            )
