"""The list of mutants fits the sources that it mutates; ``make mutants`` runs them."""

from __future__ import annotations

from dataclasses import replace

from tests.mutants.mutations import MUTANTS


def test_every_mutation_still_applies_and_names_tests_that_exist() -> None:
    assert [reason for mutant in MUTANTS if (reason := mutant.stale()) is not None] == []
    assert all(mutant.old != mutant.new and mutant.tests for mutant in MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_mutation_whose_text_has_gone_is_stale() -> None:
    first = MUTANTS[0]
    assert "occurs 0 times" in str(replace(first, old="no such text").stale())
    assert "no such test file: tests/gone.py" in str(replace(first, tests=("tests/gone.py",)).stale())
