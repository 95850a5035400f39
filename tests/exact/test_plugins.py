"""Third parties' parts: dishonest ones are refused with what is wrong and why, an honest plugin passes."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepspec.exact.parts import ToyDrafter
from deepspec.heads.markov import MarkovHead
from deepspec.interfaces import Calibrator, HeadStep, LengthPolicy, Part, Readout
from deepspec.plugins import create_plugin_manager, register
from deepspec.testing import Report, check_part, check_strategy
from deepspec.types import Load
from deepspec.verifiers.block import BlockVerifier
from tests.exact import honest_plugin
from tests.exact.made_parts import OneNoise, Peeks


class OwnToken(MarkovHead):
    """Goes back to a position's confidence once its token is known."""

    name = "own-token"

    def begin(self, hidden: Tensor) -> list[Tensor]:
        return []

    def step(self, previous: Tensor, hidden: Tensor, state: list[Tensor]) -> tuple[HeadStep, list[Tensor]]:
        step = self.block(previous, hidden)
        if state:
            state[-1].copy_(previous - 1.0)  # in place, in the tensor that the core has kept
        return step, [*state, step.confidence]


class OneStepBehind(MarkovHead):
    """Decodes with another token than it is trained with."""

    name = "one-step-behind"

    def step(self, previous: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[HeadStep, Tensor]:
        return self.block(previous if state is None else state, hidden), previous


class TwoRowsOneToken(ToyDrafter):
    """Two rows of its vocabulary are the same token, whose q is then that of one of them."""

    name = "two-rows"

    def readout(self) -> Readout:
        weight = self.context.target.lm_head
        return Readout(torch.cat([weight[:2], -weight[:1]]), target_ids=torch.tensor([0, 1, 0]))


class LooksAhead(Calibrator):
    """Raises a position's acceptance by what the next one thinks."""

    name = "looks-ahead"

    def conditional(self, confidence: Tensor) -> Tensor:
        return (confidence + confidence.roll(-1, dims=1)).sigmoid()


class Backwards(Calibrator):
    """Not monotone."""

    name = "backwards"

    def conditional(self, confidence: Tensor) -> Tensor:
        return (-confidence).sigmoid()


class Raises(Calibrator):
    """Fails."""

    name = "raises"

    def conditional(self, confidence: Tensor) -> Tensor:
        raise KeyError("lost")


class Restless(LengthPolicy):
    """Draws its lengths."""

    name = "restless"

    def lengths(self, survival: Tensor, drafted: Tensor, load: Load) -> Tensor:
        return (torch.rand(len(drafted)) * (drafted + 1)).long()


def failures(report: Report) -> dict[str, str]:
    return {found.name: found.detail for found in report.failures}


@pytest.mark.parametrize(
    ("part", "name", "what", "why"),
    [
        (OwnToken, "confidence", "depends on the token drawn there", "output is biased"),
        (
            TwoRowsOneToken,
            "recorded q",
            "another distribution than the q that is recorded",
            "output is biased",
        ),
        (Peeks, "policy", "past that position depends on the tokens that are judged", "output is biased"),
        (Restless, "policy", "asked again about the same confidences", "may bias the output"),
        (OneStepBehind, "head block", "block(), which is trained, is not step()", "few drafts are accepted"),
        (LooksAhead, "calibrator", "depends on other positions'", "output is biased"),
        (Backwards, "calibrator", "a higher confidence gives a lower acceptance", "prefers the worse drafts"),
        (OneNoise, "noise", "one uniform decides two things", "output is biased"),
    ],
    ids=lambda value: value.name if isinstance(value, type) else "",
)
def test_a_dishonest_part_is_refused_with_the_reason(
    part: type[Part], name: str, what: str, why: str
) -> None:
    report = check_part(part)
    assert not report.passed
    found = failures(report)
    assert ("output law" in found) == (part in (OwnToken, TwoRowsOneToken, Peeks, Restless, LooksAhead))
    assert ("noise" in found) == (part in (OneNoise, Restless))
    assert what in found[name]
    assert why in found[name]
    with pytest.raises(AssertionError, match=f"{part.name} fails [0-9] properties\n"):
        report.raise_if_failed()


def test_a_part_that_raises_fails_what_needs_it_and_no_more() -> None:
    found = failures(check_part(Raises))
    assert found["calibrator"] == "could not be checked: KeyError: 'lost'"
    assert "head block" not in found


def test_an_honest_plugin_passes_with_public_names_alone() -> None:
    path = Path(honest_plugin.__file__)
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 60
    modules = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in modules if node.module.startswith("deepspec")} == {
        "deepspec",
        "deepspec.interfaces",
        "deepspec.types",
    }
    manager = create_plugin_manager()
    register(manager, honest_plugin, name="honest")
    assert check_strategy("honest", manager).raise_if_failed().passed
    check_part(honest_plugin.FloorLength).raise_if_failed()


def test_another_verifier_passes_when_it_is_right() -> None:
    class Mine(BlockVerifier):
        name = "mine"

    check_part(Mine).raise_if_failed()
