"""Text that is compared with a file; ``UPDATE_SNAPSHOTS=1`` writes the file instead."""

from __future__ import annotations

import os
from pathlib import Path

SNAPSHOTS = Path(__file__).parent / "snapshots"


def check_snapshot(text: str, path: Path) -> None:
    """Hold ``text`` to the content of ``path``."""
    if os.environ.get("UPDATE_SNAPSHOTS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    kept = path.read_text(encoding="utf-8") if path.exists() else "(no snapshot)"
    assert text == kept, f"{path.name} changed; read it, and if it is right: UPDATE_SNAPSHOTS=1 make test"
