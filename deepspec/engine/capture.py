"""Work of a round that is recorded once for its shapes and replayed since: CUDA graphs on an NVIDIA GPU.

After the drafter's and the target's forward a round is some hundred small launches, which a host issues more
slowly than the GPU runs them. A recording holds them all, with the tensors that they read and write; new
values are copied into those. The forwards with their caches are not recorded.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
#: Runs work on tensors that stay where they are; gives what runs it again, and its result's tensors.
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], object], Any]]

#: ``0`` launches everything one by one on a GPU, too.
GRAPHS_VARIABLE = "DEEPSPEC_CUDA_GRAPHS"
#: Recordings of one piece of work that are kept; a batch may have any size up to the engine's.
MOST = 32
#: Calls of a shape that come before it is recorded, which takes as long as many rounds: a batch that drains
#: has each of its sizes for a few.
CALLS_BEFORE = 16
log = logging.getLogger(__name__)


def takes_graphs(device: torch.device) -> bool:
    """Whether rounds on ``device`` are recorded."""
    return device.type == "cuda" and os.environ.get(GRAPHS_VARIABLE) != "0"


def cuda_graphs(device: torch.device) -> Recorder:
    """Records into CUDA graphs that share one pool of memory, so only one of them may run at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            result = run()
        return graph.replay, result

    return record


@dataclass(frozen=True)
class _Recording:
    """The tensors of the arguments, what computes the result from them, and the result."""

    given: tuple[Tensor, ...]
    replay: Callable[[], object]
    result: Any

    def run(self, given: Any) -> Any:
        for held, new in zip(self.given, leaves(given), strict=True):
            if held is not new:
                held.copy_(new)
        self.replay()
        return self.result


class Captured(Generic[T]):
    """``work``, replayed wherever arguments of these shapes, types and flags came before.

    The first ``CALLS_BEFORE`` calls with them run as they are, which also compiles what has to be. Work must
    depend on its arguments' tensors and on weights that stay in their place, and must not wait for the
    device; when recording fails it runs as it is from then on, and the log says so.

    Args:
        work: of tensors, host values, and tuples and frozen dataclasses of both.
        record: how it is recorded.
        lends: gives the recording's own tensors as result, good until the next call, instead of copies.
        borrows_from: other work whose lent results are read where they lie.
    """

    def __init__(
        self,
        work: Callable[..., T],
        record: Recorder,
        *,
        lends: bool = False,
        borrows_from: Captured[Any] | None = None,
    ) -> None:
        self._work, self._record = work, record
        self._lends, self._lender = lends, borrows_from
        self._known: OrderedDict[Hashable, int | _Recording] = OrderedDict()
        self._refused = False

    def __call__(self, *given: Any) -> T:
        known: int | _Recording = 0
        if not self._refused:
            key = mapped(given, lambda t: (t.shape, t.dtype, t.device))
            known = self._known.pop(key, 0)
            if known == CALLS_BEFORE:
                known = self._recorded(given)
            self._known[key] = known if isinstance(known, _Recording) else known + 1
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        if not isinstance(known, _Recording):
            return self._work(*given)
        result: T = known.run(given)
        return result if self._lends else mapped(result, Tensor.clone)

    def _recorded(self, given: tuple[Any, ...]) -> _Recording | int:
        lent = set() if self._lender is None else self._lender.lent()

        def place(value: Tensor) -> Tensor:
            return value if id(value) in lent else value.clone(memory_format=torch.contiguous_format)

        held = mapped(given, place)
        try:
            replay, result = self._record(lambda: self._work(*held))
        except RuntimeError as error:  # what torch raises when work waits for the device
            self._refused = True
            name = getattr(self._work, "__name__", "work")
            log.info("%s runs without CUDA graphs, since it could not be recorded: %s", name, error)
            return 0
        return _Recording(tuple(leaves(held)), replay, result)

    def lent(self) -> set[int]:
        """Which tensors it lends, by ``id``."""
        recordings = [one for one in self._known.values() if isinstance(one, _Recording)]
        return {id(tensor) for one in recordings for tensor in leaves(one.result)}


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The value with every tensor changed, inside tuples and frozen dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(one, change) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: mapped(getattr(value, one.name), change) for one in fields(value)})
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors inside, in the order of :func:`mapped`."""
    found: list[Tensor] = []
    mapped(value, found.append)
    return iter(found)
