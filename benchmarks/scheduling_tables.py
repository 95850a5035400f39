"""The README's tables of calibration, and of the simulator beside the engine."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from table_cells import machine

_WAYS = ("as it is", "fitted at home", "online", "sequential", "isotonic")


def calibration(record: dict[str, Any]) -> str:
    """Mean error of the survival under each shift and after each switch, less the floor."""
    found = record["result"]
    columns = ("code at temperature 1, then", "rounds", *_WAYS)
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for kind, name in (("shifts", "shift"), ("switches", "switch")):
        for one in found[kind]:
            cells = [_error(one[way]) if way in one else "" for way in _WAYS]
            said = one[name] if kind == "shifts" else f"{one[name]}, in the stream"
            rows.append(f"| {said} | {one['num_rounds']:,} | {' | '.join(cells)} |")
    before, after, _ = found["switches"][0]["rounds"]
    head = (
        "Expected calibration error of the survival, mean over positions, in percentage points, and in "
        f"brackets that of a perfect calibrator on as many rounds: {found['setting']}. A shift is fitted to "
        "every second request and measured on the others; in the stream the online calibrator saw "
        f"{before} rounds of {found['switches'][0]['batch']} requests before the switch and {after} after "
        "it, and `fitted at home` are sequential temperatures of the former:"
    )
    return "\n".join([head, "", *rows, "", machine(record, "")])


def _error(found: dict[str, Any]) -> str:
    return f"{100 * fmean(found['ece']):.1f} ({100 * fmean(found['floor']):.1f})"


def engine_load(record: dict[str, Any]) -> str:
    """Both throughputs at each load, and how far apart they are."""
    rows = [
        "| requests | policy | engine, tokens/s | simulated | off | allowed |",
        "|---|---|---|---|---|---|",
    ]
    for cell in record["result"]["cells"]:
        engine, simulated = (
            f"{one['median']:.0f} ({one['q1']:.0f}–{one['q3']:.0f})"
            for one in (cell["engine"], cell["simulated"])
        )
        off, allowed = f"{100 * cell['off']:+.0f}%", f"{100 * cell['allowed']:.0f}%"
        rows.append(f"| {cell['requests']} | {cell['policy']} | {engine} | {simulated} | {off} | {allowed} |")
    head = (
        "The simulator beside the real engine, under endless requests, with the curve that `deepspec "
        f"profile` measured before each repeat and recorded rounds: {record['result']['setting']}. Allowed "
        "is a tenth, or twice the engine's spread:"
    )
    return "\n".join([head, "", *rows, "", machine(record)])
