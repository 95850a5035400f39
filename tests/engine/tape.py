"""A CUDA graph's stand-in on a CPU: the operations that ran, and their tensors, to be run again in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {"_local_scalar_dense", "nonzero", "item", "equal"}


class _Recording(TorchDispatchMode):
    """Keeps every operation that computes something, and refuses what a stream that records refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]] = []
        self.made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _WAITING:
            raise RuntimeError(f"operation {func} waits for the device while it is recorded")
        result = func(*args, **(kwargs or {}))
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        if not isinstance(results[0], Tensor):
            return result  # a size
        places = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        is_in_place = func._schema.is_mutable
        made = [one for one in results if one.untyped_storage().data_ptr() not in places]
        if is_in_place or made:  # else views, which still show what lies there
            self.steps.append((func, args, kwargs or {}, results))
            self.made += [] if is_in_place else made
        return result


class Tape:
    """Records as :func:`deepspec.engine.capture.cuda_graphs` does: everything stays at its address.

    Attributes:
        num_recorded, num_replays: how often each was done.
    """

    def __init__(self) -> None:
        self.num_recorded = self.num_replays = 0

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], object], Any]:
        mode = _Recording()
        with mode:
            result = run()
        self.num_recorded += 1
        for made in mode.made:  # a capture computes nothing
            made.fill_(torch.nan if made.is_floating_point() else 0)

        def replay() -> None:
            self.num_replays += 1
            for func, args, kwargs, results in mode.steps:
                again = func(*args, **kwargs)
                news = again if isinstance(again, tuple | list) else (again,)
                for kept, new in zip(results, news, strict=True):
                    if kept is not new:
                        assert kept.shape == new.shape, "a recorded operation gave another shape"
                        kept.copy_(new)

        return replay, result
