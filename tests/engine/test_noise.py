"""A round's uniforms: none is used twice, and the delta rule's depend on the absolute position alone."""

from __future__ import annotations

import torch

from deepspec.engine.noise import round_noise

CPU = torch.device("cpu")
EVERY = frozenset({"accept", "residual", "delta"})


def test_no_uniform_of_a_round_is_used_twice() -> None:
    draft, uniforms = round_noise([7, 2**40 + 7], [5, 5], 3, EVERY, CPU)
    assert draft.shape == (2, 3, 2)
    parts = (draft, uniforms.accept, uniforms.residual, uniforms.delta)
    drawn = torch.cat([part.flatten() for part in parts]).tolist()
    assert len(set(drawn)) == len(drawn) == 2 * (6 + 3 + 2 + 8)


def test_rounds_that_overlap_draw_the_delta_noise_of_a_position_alike_and_nothing_else() -> None:
    (draft, early), (later_draft, late) = (round_noise([7], [anchor], 3, EVERY, CPU) for anchor in (5, 7))
    assert early.delta[:, 2:].equal(late.delta[:, :2])
    assert not set(draft.flatten().tolist()) & set(later_draft.flatten().tolist())
    assert not set(early.accept.flatten().tolist()) & set(late.accept.flatten().tolist())
