"""What needs no model starts without torch, and within 0.7 s."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "datasets"}
STARTUP_S = 0.7


@pytest.mark.parametrize(
    "words",
    [
        "--version",
        "--help",
        "train --help",
        "data prepare --help",
        "data regenerate --help",
        "plugins",
        "plugins --json",
        "config show",
        "runs",
    ],
)
def test_what_needs_no_model_starts_without_torch_and_soon(words: str, tmp_path: object) -> None:
    code = (
        "import sys\nfrom deepspec.cli import main\n"
        f"try: main({words.split()!r})\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"assert not {HEAVY!r} & set(sys.modules)"
    )
    took = []
    for _ in range(3):
        before = _seconds_of_children()
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        took.append(_seconds_of_children() - before)
        assert ran.returncode == 0, ran.stderr
    assert min(took) <= STARTUP_S


def _seconds_of_children() -> float:
    """Their processor time, which other programs on the machine stretch less than the time on the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
