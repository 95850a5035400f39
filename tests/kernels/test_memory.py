"""No access outside the arrays, whatever ids, lengths, starts and logits say: the interpreter is watched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepspec.kernels import triton_rules
from tests.kernels.rounds import BLOCK, DEVICE, RULES, Shape, by_kernels, random_round

# NumPy, which interprets the kernels, warns of rows of NaN and of the side of a tl.where that is not taken.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|All-NaN).*:RuntimeWarning")
WILD = (-(2**63), -5, -1, 0, 1, 2, 3, 4, 7, 18, 19, 20, 1000, 2**31, 2**40, 2**63 - 1)
TRUNCATED = ({"top_k": 3}, {"top_p": 0.8}, {"temperature": 0.0}, {"min_p": 0.1})


class OutsideError(Exception):
    """A load or store outside the tensors that its kernel was launched with."""


@pytest.fixture
def _watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of compiled kernels only what they decide is looked at here; compute-sanitizer watches those."""
    from triton.runtime import interpreter

    real, run = interpreter._interpreter, interpreter.GridExecutor.__call__
    spans: list[tuple[int, int]] = []

    def looked_at(access: Callable[..., Any], mask_at: int) -> Callable[..., Any]:
        def checked(addresses: np.ndarray, *rest: Any) -> Any:
            mask = rest[mask_at]
            for address in np.broadcast_to(addresses, mask.shape)[mask].tolist():
                if not any(low <= address < high for low, high in spans):
                    raise OutsideError(hex(address))
            return access(addresses, *rest)

        return checked

    class Watched:
        load = staticmethod(looked_at(real.load, 0))
        store = staticmethod(looked_at(real.store, 1))

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        spans[:] = [(t.data_ptr(), t.data_ptr() + _extent(t)) for t in tensors]
        return run(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_interpreter", Watched())
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)


def _extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to past its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


@pytest.mark.usefixtures("_watched")
@pytest.mark.parametrize("params", [({},), TRUNCATED], ids=["whole", "truncated"])
@pytest.mark.parametrize("rule", RULES)
def test_no_input_leads_outside_the_arrays(rule: str, params: tuple[dict[str, float], ...]) -> None:
    shape = Shape(num=len(WILD), num_draft=3, vocab=19, dtype=torch.bfloat16, params=params)
    given = random_round(shape, 5)
    wild = torch.tensor(WILD, device=DEVICE)
    rows = given.target.logits.clone()
    rows[::3], rows[1::3] = float("nan"), float("-inf")
    broken = replace(
        given,
        target=replace(given.target, starts=wild.roll(5), logits=rows),
        draft=replace(given.draft, tokens=torch.stack([wild.roll(k) for k in range(3)], dim=1)),
        lengths=wild,
    )
    verdict = by_kernels(rule, broken)
    assert all(0 <= accepted <= 3 for accepted in verdict.accepted.tolist())
    assert all(0 <= token < 19 for token in verdict.bonus.tolist())


@pytest.mark.usefixtures("_watched")
def test_the_watch_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random_round(Shape(num=2, num_draft=1), 0)
    room = triton_rules.Workspace.allocate(2, 1, 27, DEVICE, block=BLOCK)
    short = replace(room, peaks=room.peaks[:1])
    monkeypatch.setattr(triton_rules.Workspace, "check", lambda *sizes: None)
    with pytest.raises(Exception, match="OutsideError"):
        triton_rules.delta_rule(
            given.target, given.draft, given.lengths, given.delta, workspace=short, block=BLOCK
        )
