"""One process among the several that ``torchrun`` started, and the few things they do together.

Everything here is a no-op for a process that is alone. Values pass between processes as JSON, never pickled.
A failure that all of them learn of is told by one of them; the others leave by :class:`ElsewhereError`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deepspec.errors import ConfigError, DeepSpecError, DistributedError, ElsewhereError

if TYPE_CHECKING:
    from torch import Tensor

Made = TypeVar("Made")

TIMEOUT_KEY = "DEEPSPEC_TIMEOUT_S"
_TIMEOUT_S = 1800.0
#: How long a process whose peer failed waits for torchrun to end it, so that the peer is named as the cause.
_GRACE_S = 5.0
_BUCKET_BYTES = 2**25
#: How gloo, NCCL and the store say that another process does not answer.
_LOST = (
    "Connection",
    "connection",
    "Gloo",
    "gloo",
    "NCCL",
    "Socket",
    "recvValue",
    "Broken pipe",
    "timed out",
)


@dataclass(frozen=True)
class World:
    """Which process this is, of how many; ``local_rank`` counts those of one host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, logs and results."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def share(self, count: int) -> tuple[int, int]:
        """First and one past the last of ``count`` things that fall to this process, as even as can be."""
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def add_up(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.is_alone:
            return list(values)
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def add_up_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes: those of a type together, in buckets."""
        if self.is_alone:
            return
        import torch
        import torch.distributed as dist

        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            for tensor, total in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value (anything that JSON holds), by rank."""
        if self.is_alone:
            return [value]
        import torch
        import torch.distributed as dist

        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(own)]))
        lengths = [int(size) for size in sizes]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(own)] = own
        found = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        pairs = zip(found, lengths, strict=True)
        return [json.loads(bytes(each[:length].numpy())) for each, length in pairs]

    def together(self, make: Callable[[], Made]) -> Made:
        """Do something in every process; a DeepSpecError of any ends all, and is raised where it arose.

        Where several fail alike the first raises it. The others raise :class:`ElsewhereError`.
        """
        if self.is_alone:
            return make()
        made: Made | None = None
        failure: DeepSpecError | None = None
        try:
            made = make()
        except DeepSpecError as error:
            if error.is_told:
                raise
            failure = error
        self._tell(failure)
        return made  # type: ignore[return-value]  # a failure was raised before

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """The same, the first process of each host before its others, which then find what it cached."""
        if self.is_alone:
            return make()
        made = self.together(make) if self.local_rank == 0 else self.together(lambda: None)
        later = self.together(make) if self.local_rank != 0 else self.together(lambda: None)
        return made if self.local_rank == 0 else later  # type: ignore[return-value]  # each made its own

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What the main process makes (anything that JSON holds), everywhere; its failure ends all."""
        if self.is_alone:
            return make()
        made = self.together(lambda: make() if self.is_main else None)
        return self.gather(made)[0]

    def same_everywhere(self, what: str, value: Any) -> None:
        """Raise ConfigError where this process has other values than the main one, by keys that differ."""
        if self.is_alone:
            return
        main = self.gather(value)[0]
        keys = sorted(key for key in {*main, *value} if main.get(key) != value.get(key))

        def check() -> None:
            if keys:
                first = keys[0]
                raise ConfigError(
                    f"{what}: this process has {first} = {value.get(first)!r}, and rank 0 has "
                    f"{main.get(first)!r}; start all with the same ({', '.join(keys)} differ)"
                )

        self.together(check)

    def agreed(self, error: DeepSpecError) -> DeepSpecError:
        """What to raise for a failure that every process comes to by itself: the main one tells it."""
        error.is_told = True
        return error if self.is_main else ElsewhereError("rank 0 says why")

    def spread_(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the main one's values, in place."""
        if self.is_alone:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.broadcast(tensor, 0)

    @contextmanager
    def watched(self, how_to_go_on: Callable[[], str]) -> Iterator[None]:
        """Raise DistributedError when another process is gone inside."""
        try:
            yield
        except RuntimeError as error:
            if self.is_alone or not any(sign in str(error) for sign in _LOST):
                raise
            raise DistributedError(
                f"another process ended or did not answer; what it says is the cause; {how_to_go_on()}"
            ) from error

    def _tell(self, failure: DeepSpecError | None) -> None:
        texts = self.gather(None if failure is None else str(failure))
        if not any(text is not None for text in texts):
            return
        if failure is not None:
            failure.is_told = True
            if texts.index(str(failure)) == self.rank:
                raise failure
        teller = next(rank for rank, text in enumerate(texts) if text is not None)
        raise ElsewhereError(f"rank {teller} says why")


ALONE = World()


def of_environment() -> World:
    """What ``torchrun`` says in the environment, without waiting for anyone; imports no torch.

    Raises ConfigError for variables that are not whole numbers, or a rank outside the world.
    """
    given = {key: os.environ.get(key) for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if given["WORLD_SIZE"] in (None, "1") or given["RANK"] is None:
        return ALONE
    try:
        rank, size = int(given["RANK"]), int(given["WORLD_SIZE"] or "")
        local_rank = int(given["LOCAL_RANK"] or rank)
    except ValueError:
        rank, size, local_rank = -1, 0, 0
    if not 0 <= rank < size:
        said = ", ".join(f"{key}={value}" for key, value in given.items())
        raise ConfigError(f"the environment says {said}; start several processes with torchrun")
    return World(rank, size, local_rank)


def named() -> str:
    """``rank 1 of 4``, or nothing for a process that is alone."""
    try:
        world = of_environment()
    except ConfigError:
        return ""
    return "" if world.is_alone else f"rank {world.rank} of {world.size}"


def join() -> World:
    """Meet the other processes, once; the world as it is. What is on CUDA goes over NCCL, all else over gloo.

    Raises DistributedError when they do not all come in time (``DEEPSPEC_TIMEOUT_S``, 1800 seconds).
    """
    world = of_environment()
    if world.is_alone:
        return world
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return world
    on_cuda = world.local_rank < torch.cuda.device_count()
    seconds = _timeout_s()
    try:
        if on_cuda:
            torch.cuda.set_device(world.local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_cuda else "gloo", timeout=timedelta(seconds=seconds)
        )
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).strip().splitlines()[0][:200]
        raise DistributedError(
            f"the {world.size} processes did not all meet at {where} within {seconds:g} s ({reason}); see "
            "that torchrun runs on every host with the same --nnodes, --nproc-per-node, --rdzv-id and "
            f"--rdzv-endpoint, and that hosts reach each other; {TIMEOUT_KEY} waits longer"
        ) from error
    return world


def leave() -> None:
    """Part from the other processes after success, so that none of them ends while another still talks."""
    dist = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):  # another one's failure is its own
            dist.barrier()
        dist.destroy_process_group()


def report(message: str) -> None:
    """Leave torchrun, if it started this process, what it is to show as the reason of its end."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        return
    content = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
    with suppress(OSError):
        Path(path).write_text(json.dumps({"message": content}), encoding="utf-8")


def await_the_end(seconds: float = _GRACE_S) -> None:
    """Leave it to torchrun to end this process, so that the one whose failure it was is seen to end first."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.pause()


def _timeout_s() -> float:
    given = os.environ.get(TIMEOUT_KEY)
    try:
        seconds = _TIMEOUT_S if given is None else float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT_KEY}={given!r}; give a number of seconds above 0")
    return seconds


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of one type and place together, in their order, up to some megabytes."""
    buckets: list[list[Tensor]] = []
    open_: dict[Any, tuple[list[Tensor], int]] = {}
    for tensor in tensors:
        key = (tensor.dtype, tensor.device)
        bucket, filled = open_.get(key, ([], 0))
        if not bucket or filled + tensor.nbytes > _BUCKET_BYTES:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(tensor)
        open_[key] = (bucket, filled + tensor.nbytes)
    return buckets
