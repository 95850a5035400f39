"""What a mutant is: one small mistake in the source, and the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: what it is called in the table. file: what it changes, from the repository's root.
        old, new: the text, which occurs exactly once, and what stands in its place.
        wrong: why the result is wrong.
        tests: test files of which at least one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    wrong: str
    tests: tuple[str, ...]

    def stale(self, root: Path = ROOT) -> str | None:
        """Why the entry does not fit the sources any more, or None."""
        path = root / self.file
        count = path.read_text().count(self.old) if path.is_file() else 0
        if count != 1:
            return f"{self.name}: {self.old!r} occurs {count} times in {self.file}, not once"
        missing = [test for test in self.tests if not (root / test).is_file()]
        return f"{self.name}: no such test file: {', '.join(missing)}" if missing else None
