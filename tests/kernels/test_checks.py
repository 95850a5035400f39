"""Debug mode: what is wrong with a round's input is said with the request and the row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from deepspec.errors import ConfigError
from deepspec.kernels.checks import check_round
from tests.kernels.rounds import Round, Shape, random_round

Break = Callable[[Round], Round]


def changed(tensor: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    copy = tensor.clone()
    copy[place] = value
    return copy


def _logits(given: Round, value: float) -> Round:
    row = int(given.target.starts[1]) + 1
    logits = changed(given.target.logits, (row,), value)
    return replace(given, target=replace(given.target, logits=logits))


def _token(given: Round, value: int) -> Round:
    return replace(given, draft=replace(given.draft, tokens=changed(given.draft.tokens, (1, 0), value)))


CASES: dict[str, Break] = {
    r"request 1 drafted token 27 at position 0; allowed are 0\.\.26": lambda g: _token(g, 27),
    r"request 1 drafted token -1 at position 0": lambda g: _token(g, -1),
    r"the target logits of request 1, row 1, hold NaN": lambda g: _logits(g, float("nan")),
    r"the target logits of request 1, row 1, hold nothing finite": lambda g: _logits(g, float("-inf")),
    r"the draft logits of request 1, row 0, hold NaN": lambda g: replace(
        g, draft=replace(g.draft, logits=changed(g.draft.logits, (1, 0, 5), float("nan")))
    ),
    r"request 1 has length 3; allowed are 0\.\.2": lambda g: replace(g, lengths=changed(g.lengths, (1,), 3)),
    r"request 0 has length 2 and rows .* one row more than its length": lambda g: replace(
        g, target=replace(g.target, starts=changed(g.target.starts, (1,), 1))
    ),
    r"lengths is \[3\]; .* ask for \[4\]": lambda g: replace(g, lengths=g.lengths[:3]),
    r"tensors on several devices: .*lengths on meta": lambda g: replace(g, lengths=g.lengths.to("meta")),
}


def sound() -> Round:
    given = random_round(Shape(num=4, packed=False), 0)
    return replace(given, lengths=torch.full_like(given.lengths, 2))


def test_a_sound_round_passes() -> None:
    given = sound()
    check_round(given.target, given.draft, given.lengths, given.accept)


@pytest.mark.parametrize("complaint", CASES)
def test_what_is_wrong_is_named(complaint: str) -> None:
    broken = CASES[complaint](sound())
    with pytest.raises(ConfigError, match=complaint):
        check_round(broken.target, broken.draft, broken.lengths, broken.accept)


def test_rows_that_are_not_read_may_hold_anything() -> None:
    given = sound()
    lengths = changed(given.lengths, (1,), 0)
    broken = _logits(replace(given, lengths=lengths), float("nan"))
    check_round(broken.target, _token(broken, -5).draft, lengths)
