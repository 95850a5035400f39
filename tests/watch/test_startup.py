"""What needs no model starts without torch; the time is shown (0.7 s is the bar on an idle machine)."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "datasets"}


@pytest.mark.parametrize(
    "words", ["--version", "--help", "train --help", "plugins", "plugins --json", "config show", "runs"]
)
def test_what_needs_no_model_starts_without_torch(words: str, tmp_path: object) -> None:
    code = (
        "import sys\nfrom deepspec.cli import main\n"
        f"try: main({words.split()!r})\n"
        "except SystemExit as ended: assert not ended.code\n"
        f"assert not {HEAVY!r} & set(sys.modules)"
    )
    started = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    print(f"deepspec {words}: {time.perf_counter() - started:.2f} s")
    assert ran.returncode == 0, ran.stderr
