"""The README's table of a record of ``scaling.py``: training by several processes."""

from __future__ import annotations

from typing import Any

from table_cells import machine, ratio


def table(record: dict[str, Any]) -> str:
    """Tokens per second of each contender, and what two processes are of the others."""
    found = record["result"]
    rows = ["| processes × threads | tokens/s | two processes are of it |", "|---|---|---|"]
    for name, speed in found["tokens_per_s"].items():
        gain = found["two_over"].get(name)
        cells = ["{median:,.0f} ({q1:,.0f}–{q3:,.0f})".format(**speed), "" if gain is None else ratio(gain)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    head = (
        f"Training by several processes over gloo: DSpark, the demo target, {found['rows']} × 256 tokens a "
        "step with each:"
    )
    return "\n".join([head, "", *rows, "", machine(record)])
