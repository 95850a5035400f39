"""The list of mutants fits the sources that it mutates; ``make mutants`` runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

from tests.mutants.mutant import ROOT
from tests.mutants.mutations import MUTANTS


def test_every_mutation_still_applies_and_names_tests_that_exist() -> None:
    assert [reason for mutant in MUTANTS if (reason := mutant.stale()) is not None] == []
    assert all(mutant.old != mutant.new and mutant.tests for mutant in MUTANTS)
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_a_mutation_whose_text_has_gone_is_stale() -> None:
    first = MUTANTS[0]
    assert "occurs 0 times" in str(replace(first, old="no such text").stale())
    assert "no such test file: tests/gone.py" in str(replace(first, tests=("tests/gone.py",)).stale())


def test_make_mutants_starts_as_the_makefile_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^mutants:.*\n\t\$\(BIN\)/python (.*) \$\(ARGS\)$", makefile, re.MULTILINE)
    assert recipe is not None
    command = [sys.executable, *recipe[1].split(), "--only", "no such mutant"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == (f"none of {len(MUTANTS)} mutants was chosen", "")
