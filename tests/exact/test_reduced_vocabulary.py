"""Drafters whose vocabulary is a part of the target's, in an order of its own, pass when they are right."""

from __future__ import annotations

import torch

from deepspec.exact.parts import ToyDrafter
from deepspec.interfaces import Readout
from deepspec.testing import check_part


class FewTokens(ToyDrafter):
    """Drafts all tokens of the target but its id 1, the last one first."""

    name = "few"

    def readout(self) -> Readout:
        weight = self.context.target.lm_head
        ids = torch.tensor([number for number in range(len(weight)) if number != 1]).flip(0)
        return Readout(weight[ids], target_ids=ids)


def test_a_drafter_that_lacks_tokens_of_the_target_passes() -> None:
    check_part(FewTokens).raise_if_failed()
