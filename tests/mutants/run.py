"""Every mutant must be caught: ``make mutants [ARGS="--only sampling"]``.

A copy of the repository gets one mistake at a time, and the tests listed for it must fail; without any
mistake they must pass. The working tree is never touched. Exit code 1 when a mutant survives, hangs or is
stale.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.mutations import MUTANTS

COPIED = {"deepspec": "deepspec", "strategies": "deepspec_strategies", "tests": "tests"}
HANGING_S = 600
TESTS_FAILED = 1  # pytest's exit code; 2 and above are no verdict of a test
CONSOLE = Console(width=80, highlight=False)


def copy_repository(folder: Path) -> None:
    """What the tests import, under the names that they import it by."""
    for source, name in COPIED.items():
        shutil.copytree(ROOT / source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """pytest's exit code, None when it hung, and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    # Without bytecode: a mutant of equal size within a second of its neighbour would be mistaken for it.
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=HANGING_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, "hung"
    failed = re.search(r"^FAILED \S+::(\w+)", done.stdout, flags=re.MULTILINE)
    said = (done.stdout + done.stderr).strip().splitlines() or [""]
    return done.returncode, failed[1] if failed else said[-1]


def verdict(folder: Path, mutant: Mutant) -> tuple[bool, str]:
    """Whether the mutant is caught, and the test that caught it or what happened instead."""
    path = folder / mutant.file.replace("strategies/", "deepspec_strategies/", 1)
    original = path.read_text()
    path.write_text(original.replace(mutant.old, mutant.new))
    try:
        code, found = run_tests(folder, mutant.tests)
    finally:
        path.write_text(original)
    if code == 0:
        return False, f"SURVIVED: {mutant.wrong}"
    return code == TESTS_FAILED, found if code == TESTS_FAILED else f"NO VERDICT: {found}"


def chosen(only: str | None, touched: str | None) -> list[Mutant]:
    """Mutants whose name or file contains ``only``, and whose file changed since the commit ``touched``."""
    found = [m for m in MUTANTS if only is None or only in m.name or only in m.file]
    if touched is None:
        return found
    command = ["git", "diff", "--name-only", touched, "--"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"--touched {touched}: {done.stderr.strip().splitlines()[0]}")
    return [m for m in found if m.file in done.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="TEXT", help="mutants whose name or file contains this")
    parser.add_argument("--touched", metavar="REF", help="mutants of files that changed since this commit")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="try no further mutant after this long, and say so"
    )
    options = parser.parse_args()
    if stale := [reason for mutant in MUTANTS if (reason := mutant.stale()) is not None]:
        CONSOLE.print("\n".join(["stale mutants:", *stale]), soft_wrap=True, markup=False)
        return 1
    mutants = chosen(options.only, options.touched)
    if not mutants:
        CONSOLE.print(f"none of {len(MUTANTS)} mutants was chosen")
        return int(options.touched is None)
    started = time.perf_counter()
    table = Table("mutant", "file", Column("caught by", overflow="fold"), box=SIMPLE, pad_edge=False)
    tried = missed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_repository(folder)
        code, found = run_tests(folder, sorted({test for mutant in mutants for test in mutant.tests}))
        if code != 0:
            CONSOLE.print(f"the tests fail without any mutant: {found}", markup=False)
            return 1
        for mutant in mutants:
            if time.perf_counter() - started > 60 * options.minutes:
                break
            tried += 1
            caught, by = verdict(folder, mutant)
            missed += not caught
            table.add_row(mutant.name, mutant.file.removeprefix("deepspec/"), by)
            sys.stderr.write("." if caught else "!")
            sys.stderr.flush()
    sys.stderr.write("\n")
    CONSOLE.print(table, markup=False)
    minutes = (time.perf_counter() - started) / 60
    CONSOLE.print(f"{tried - missed} of {tried} mutants caught in {minutes:.1f} minutes")
    if tried < len(mutants):
        CONSOLE.print(f"{len(mutants) - tried} more were chosen and not tried")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
