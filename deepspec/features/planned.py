"""A cache of features before it is written: its text, its size, and what of it is there.

Which pieces go into which shard depends on the text alone, so every writer plans the same cache.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepspec.data import TokenizedCorpus, joined
from deepspec.errors import DataError
from deepspec.features.plan import SHARD_BYTES, Pieces, Shape, ShardPlan, plan_shards
from deepspec.features.record import NAME, cache_folder, check_agrees, identity_of, read_record
from deepspec.features.shard import read_index, shard_path
from deepspec.paths import existing_parent
from deepspec.plugins import create_plugin_manager
from deepspec.target.head import load_head
from deepspec.target.load import resolve_device
from deepspec.train.prepare import check_fit
from deepspec.train.text import corpora

if TYPE_CHECKING:
    import pluggy

    from deepspec.config import RunConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheReport:
    """What a cache is, and what of it there is.

    Attributes:
        num_tokens: of the text. num_bytes: of all shards, as planned (a few bytes a shard off).
        share: of what every position would take in bfloat16, ``(K + 1) * D * 2`` bytes.
        num_written: shards written by this call. num_missing: shards that are still to be written.
        free_bytes: of the disk.
    """

    folder: str
    bits: int
    layers: tuple[int, ...]
    num_tokens: int
    num_bytes: int
    share: float
    num_shards: int
    num_written: int
    num_missing: int
    free_bytes: int

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / self.num_tokens

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``--json``."""
        return {"schema": 1, **asdict(self), "bytes_per_token": self.bytes_per_token}


@dataclass(frozen=True, eq=False)
class PlannedCache:
    """A cache that may be written: its text, what is kept of it and where, and what it is of."""

    config: RunConfig
    folder: Path
    corpus: TokenizedCorpus
    layers: tuple[int, ...]
    shape: Shape
    pieces: Pieces
    shards: tuple[ShardPlan, ...]
    identity: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.num_bytes for shard in self.shards)

    def missing(self) -> list[ShardPlan]:
        """The shards that are not there, or not whole; the latter are logged."""
        return [shard for shard in self.shards if not self._is_complete(shard)]

    def report(self, num_written: int = 0) -> CacheReport:
        """Where it stands."""
        return CacheReport(
            folder=str(self.folder),
            bits=self.shape.bits,
            layers=self.layers,
            num_tokens=self.pieces.num_tokens,
            num_bytes=self.num_bytes,
            share=self.num_bytes / (self.pieces.num_tokens * self.shape.bytes_uncompressed),
            num_shards=len(self.shards),
            num_written=num_written,
            num_missing=len(self.missing()),
            free_bytes=free_bytes(self.folder),
        )

    def _is_complete(self, shard: ShardPlan) -> bool:
        path = shard_path(self.folder, shard.number)
        if not path.is_file():
            return False
        try:
            return read_index(path).keys.equal(self.pieces.keys[shard.start : shard.stop])
        except DataError:
            logger.warning("%s is not whole; it is to be written again", path)
            return False


def plan_cache(
    config: RunConfig, *, shard_bytes: int = SHARD_BYTES, manager: pluggy.PluginManager | None = None
) -> PlannedCache:
    """What storing the features that training by ``config`` reads comes to; nothing is written.

    The target's decoder layers are not loaded.

    Raises:
        ConfigError: bad settings, or a folder that holds features of something else.
        DataError, TargetError: text or target that cannot be used.
    """
    folder = cache_folder(config)
    head = load_head(config.target, device=str(resolve_device(config.device)), fingerprint="")
    parts = config.strategy.build(head.info, manager=manager or create_plugin_manager())
    layers = parts.drafter.target_layers
    head.check_layers(layers)
    check_fit(config, head, parts)
    corpus = joined(*corpora(config, head, parts))
    before_anchors = parts.drafter.reads_last_hidden
    shape = Shape(len(layers), head.info.hidden_size, config.features.bits, before_anchors)
    pieces = Pieces.of(corpus)
    shards = tuple(plan_shards(pieces, shape, shard_bytes))
    identity = {
        **identity_of(config, head),
        "layers": layers,
        "last_before_anchors": before_anchors,
        "data": pieces.digest,
        "num_shards": len(shards),
    }
    if (folder / NAME).is_file():
        check_agrees(folder, read_record(folder), identity)
    return PlannedCache(config, folder, corpus, layers, shape, pieces, shards, identity)


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or would be."""
    return shutil.disk_usage(existing_parent(folder)).free
