"""What ``deepspec inspect`` says of a checkpoint, without its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from deepspec.formats.foreign import Foreign, read_foreign
from deepspec.formats.layout import EngineVerdict
from deepspec.formats.vocabulary import check_map


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's layout.

    Attributes:
        layout: its name. seen: by what it was told. facts: what breaks silently, in words.
    """

    name: str
    layout: str
    seen: str
    facts: Mapping[str, str]
    engines: tuple[EngineVerdict, ...]
    strategy: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "schema": 1,
            "name": self.name,
            "layout": self.layout,
            "seen": self.seen,
            "facts": dict(self.facts),
            "engines": {one.engine: asdict(one) for one in self.engines},
            "strategy": dict(self.strategy),
        }


def inspect_checkpoint(name: str) -> Inspection:
    """Look into a folder or hub model; raises as :func:`deepspec.formats.foreign.read_foreign`."""
    foreign = read_foreign(name, "checkpoint")
    layout = foreign.layout
    facts = {**layout.facts, "vocabulary": _vocabulary(foreign), "target": _target(foreign)}
    return Inspection(
        name=name,
        layout=foreign.format.name,
        seen=foreign.seen,
        facts=facts,
        engines=foreign.format.engines(foreign.header, layout),
        strategy=layout.strategy.model_dump(mode="json", exclude={"objectives", "objective"}),
    )


def _vocabulary(foreign: Foreign) -> str:
    """How many tokens can be drafted, and whether the map says so by offsets."""
    header, size = foreign.header, foreign.layout.claim.vocab_size
    if "d2t" not in header.files:
        return f"all {size:,} tokens"
    read = header.tensors({"d2t", "t2d"} & header.files.keys())
    check_map(f"checkpoint {header.name!r}", read["d2t"], read.get("t2d"), size)
    known = "as t2d says" if "t2d" in read else "t2d is not in the file"
    return f"{len(read['d2t']):,} of {size:,} tokens; d2t holds token id - row, {known}"


def _target(foreign: Foreign) -> str:
    claim = foreign.layout.claim
    layers = "" if claim.num_layers is None else f"{claim.num_layers} layers, "
    named = "not named" if claim.name is None else claim.name
    copies = [copy.tensor for copy in foreign.layout.copies if copy.tensor in foreign.header.files]
    held = (
        f"; copies of its tensors in the file: {', '.join(copies)}" if copies else "; no copies in the file"
    )
    return f"{named}: {layers}hidden size {claim.hidden_size}, vocabulary {claim.vocab_size:,}{held}"
