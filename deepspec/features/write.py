"""Writes the shards of a planned cache that are not there yet.

A shard is moved to its place whole, so a killed writer goes on where it was, and several share the work by
shard numbers without knowing of each other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepspec.data import TokenizedCorpus
from deepspec.distributed import join
from deepspec.errors import ResourceError, TargetError
from deepspec.features.codec import encode
from deepspec.features.plan import ShardPlan, graded_positions, kept_last, num_context, plan_shards
from deepspec.features.planned import CacheReport, PlannedCache, free_bytes
from deepspec.features.record import NAME, check_agrees, make_record, read_record
from deepspec.features.shard import StoredRows, shard_path, write_shard
from deepspec.resources import memory, size_text, writing
from deepspec.runs import write_json
from deepspec.target import Target, load_target
from deepspec.target.load import resolve_device
from deepspec.types import TokenBatch

if TYPE_CHECKING:
    from deepspec.config import RunConfig

logger = logging.getLogger(__name__)


def write_features(plan: PlannedCache, *, part: tuple[int, int] = (1, 1)) -> CacheReport:
    """Write the shards of a planned cache that are missing.

    Args:
        part: (i, n), to write only those that fall to writer i of n, 1 <= i <= n.

    Raises:
        ResourceError: the disk cannot hold the cache, or memory ran out; shards that are complete are kept.
        TargetError: the target cannot be loaded, or its hidden states are not finite.
    """
    missing = plan.missing()
    own = [shard for shard in missing if shard.number % part[1] == part[0] - 1]
    _check_disk(plan, missing)
    batches = sum(1 for shard in own for _ in _batches(plan, shard))
    most = max(join().gather(batches))
    if own or (most and plan.config.target.parallel == "fsdp"):
        target = load_target(plan.config.target, device=str(resolve_device(plan.config.device)))
        _write_record(plan, target)
        for count, shard in enumerate(own, start=1):
            _write_shard(plan, target, shard)
            logger.info("shard %d is written, %d of %d to write", shard.number, count, len(own))
        if target.is_sharded:  # the others need this process's share of its layers as often as they run it
            for _ in range(most - batches):
                target.features(
                    _one_row(plan.corpus.select(torch.tensor([0]))).to(target.device), plan.layers
                )
    report = plan.report(len(own))
    if not report.num_missing:
        for leftover in plan.folder.glob(".shard-*"):  # of writers that were killed
            leftover.unlink(missing_ok=True)
    return report


def _check_disk(plan: PlannedCache, missing: Sequence[ShardPlan]) -> None:
    """Raise ResourceError when what is still to be written does not fit, whoever writes it."""
    needed, free = sum(shard.num_bytes for shard in missing), free_bytes(plan.folder)
    if needed > free:
        narrow = replace(plan.shape, bits=4)
        least = sum(shard.num_bytes for shard in plan_shards(plan.pieces, narrow))
        raise ResourceError(
            f"the features of {plan.pieces.num_tokens:,} tokens take {size_text(plan.num_bytes)} at "
            f"features.bits={plan.shape.bits}, {size_text(needed)} of it still to write, and {plan.folder} "
            f"has {size_text(free)} free; make room, choose another features.folder, or take fewer bits (4: "
            f"{size_text(least)})"
        )


def _write_record(plan: PlannedCache, target: Target) -> None:
    path = plan.folder / NAME
    record = make_record(target, plan.identity, plan.pieces, plan.shape, plan.num_bytes)
    with writing(path, lambda: "choose another features.folder"):
        plan.folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_json(path, record.model_dump(mode="json"))
    check_agrees(plan.folder, read_record(plan.folder), plan.identity)  # another writer may have been first


def _write_shard(plan: PlannedCache, target: Target, shard: ShardPlan) -> None:
    """Compute and store one shard, some pieces at a time."""
    tapped: list[StoredRows] = []
    last: list[StoredRows] = []
    with memory(lambda: _needs_memory(plan.config)):
        for numbers in _batches(plan, shard):
            for rows in _stored(plan, target, numbers):
                tapped.append(rows[0])
                last.append(rows[1])
    path = shard_path(plan.folder, shard.number)
    with writing(
        path, lambda: "the shards that are complete are kept; once there is room, run the same again"
    ):
        write_shard(path, plan.pieces.keys[shard.start : shard.stop], tapped, last)


def _batches(plan: PlannedCache, shard: ShardPlan) -> Iterator[list[int]]:
    """Numbers of a shard's pieces in the corpus, as many at a time as a training step has tokens."""
    limit = plan.config.train.sequences_per_step * plan.config.data.sequence_length
    lengths = plan.corpus.lengths()
    batch: list[int] = []
    filled = 0
    for number in plan.pieces.numbers[shard.start : shard.stop].tolist():
        length = int(lengths[number])
        if batch and filled + length > limit:
            yield batch
            batch, filled = [], 0
        batch.append(number)
        filled += length
    yield batch


def _stored(plan: PlannedCache, target: Target, numbers: list[int]) -> list[tuple[StoredRows, StoredRows]]:
    """The rows kept of each of some pieces, which go through the target together."""
    text = plan.corpus.select(torch.tensor(numbers))
    lengths = text.lengths()
    features = target.features(_one_row(text).to(target.device), plan.layers)
    tapped_at, last_at = [], []
    for length, end in zip(lengths.tolist(), text.ends.tolist(), strict=True):
        graded = graded_positions(text.supervised[end - length : end])
        tapped_at.append(torch.arange(num_context(graded)) + end - length)
        last_at.append(kept_last(graded, before_anchors=plan.shape.last_before_anchors) + end - length)
    tapped = features.tapped[0].reshape(len(text.tokens), len(plan.layers), plan.shape.hidden_size)
    kept = (
        _pick(tapped, tapped_at, plan.shape.bits),
        _pick(features.last_hidden[0], last_at, plan.shape.bits),
    )
    return list(zip(*kept, strict=True))


def _one_row(text: TokenizedCorpus) -> TokenBatch:
    """All pieces side by side, each on its own."""
    lengths = text.lengths()
    segments = torch.arange(text.num_pieces).repeat_interleave(lengths)
    positions = torch.arange(text.num_tokens) - (text.ends - lengths)[segments]
    rows = (text.tokens.long(), segments, positions, text.supervised)
    return TokenBatch(*(row[None] for row in rows))


def _pick(values: Tensor, places: list[Tensor], bits: int) -> list[StoredRows]:
    """Rows of ``values [T, ..., D]`` at each piece's places, encoded, on the host."""
    rows = values[torch.cat(places).to(values.device)]
    if not bool(torch.isfinite(rows).all()):
        raise TargetError(
            "the target's hidden states are not finite for some of the text, so there is nothing to store; "
            "hold it in another float type (target.dtype)"
        )
    codes, scales = (None if part is None else part.cpu() for part in encode(rows, bits))
    assert codes is not None
    counts = [len(each) for each in places]
    scale_parts = [None] * len(counts) if scales is None else scales.split(counts)
    return [StoredRows(*parts) for parts in zip(codes.split(counts), scale_parts, strict=True)]


def _needs_memory(config: RunConfig) -> str:
    return (
        "memory ran out in the target's forward; the shards that are complete are kept; lower --set "
        f"train.sequences_per_step (now {config.train.sequences_per_step}), or hold the target's weights in "
        "less (target.dtype)"
    )
