"""The tables of a comparison, as text: the terminal and the page show the same ones.

A dash stands for what is not known, such as the FLOPs of a run that did not count them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN = "-"
_UNITS = "KMGTPEZ"


@dataclass(frozen=True)
class ReportTable:
    """A heading, the columns' names, and rows of as many cells."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def comparison_tables(comparison: Mapping[str, Any]) -> list[ReportTable]:
    """Acceptance, speed and training of a comparison's JSON, and the differences of every two runs."""
    tables = [table(comparison["runs"]) for table in (_acceptance, _speed, _training)]
    return [*tables, _pairs(comparison["paired"])] if comparison["paired"] else tables


def report_tables(found: Mapping[str, Any]) -> list[ReportTable]:
    """Acceptance by task, calibration and speed of a report's JSON."""
    runs = found["runs"]
    tables = [_tasks(runs), _latency(runs), _cost(runs)]
    return tables + [_calibration(run) for run in runs if run["calibration"]]


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def count(value: float | None) -> str:
    """A count with three digits and its unit: 921 K, 1.38 M, 23.4 T."""
    if value is None:
        return UNKNOWN
    unit = ""
    for larger in _UNITS:
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}".rstrip()


def interval(found: Mapping[str, Any], sign: str = "") -> str:
    """``{"mean", "ci95"}`` as ``mean (low to high)``; ``sign="+"`` shows that of positive ones, too."""
    if found["mean"] is None:
        return UNKNOWN
    mean, low, high = (f"{value:{sign}.2f}" for value in (found["mean"], *found["ci95"]))
    return f"{mean} ({low} to {high})"


def rates(values: Sequence[float | None]) -> str:
    """Acceptance by position, first to last: .46 .51 .47"""
    return " ".join(number(value).removeprefix("0") for value in values)


def _acceptance(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = [
        (
            run["name"],
            str(run["draft_length"]),
            interval(run["accepted_length"]),
            rates(run["conditional_acceptance"]),
        )
        for run in runs
    ]
    columns = ("run", "G", "accepted length τ", "conditional acceptance")
    return ReportTable("Accepted length (95 %), and acceptance by draft position", columns, tuple(rows))


def _speed(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = [
        (
            run["name"],
            number(run["draft_ms"]),
            number(run["verify_ms"]),
            *(f"{number(run[key])}×" for key in ("speedup", "speedup_batch16")),
        )
        for run in runs
    ]
    columns = ("run", "T_draft ms", "T_verify ms", "batch 1", "batch 16")
    return ReportTable("Time of a round at batch 1, and speed against plain decoding", columns, tuple(rows))


def _training(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = [
        (
            run["name"],
            run["strategy"],
            count(run["parameters"]),
            count(run["train_tokens"]),
            count(run["train_flops"]),
            count(run["train_flops_target"]),
            number(run["train_seconds"], 0),
        )
        for run in runs
    ]
    columns = ("run", "strategy", "parameters", "tokens", "FLOPs", "target's", "seconds")
    return ReportTable("Training, and the target's share of its FLOPs", columns, tuple(rows))


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = [
        (
            pair["a"],
            pair["b"],
            interval(pair["difference"], "+"),
            interval({"mean": pair["ratio"], "ci95": pair["ratio_ci95"]}),
        )
        for pair in pairs
    ]
    return ReportTable(
        "Differences of τ over the same prompts (95 %)", ("a", "b", "a - b", "a / b"), tuple(rows)
    )


def _tasks(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    names = list(dict.fromkeys(task for run in runs for task in run["evaluation"]["tasks"]))
    rows = []
    for run in runs:
        tasks = run["evaluation"]["tasks"]
        each = (
            interval({"mean": tasks[name]["accepted_length"], "ci95": tasks[name]["ci95"]})
            if name in tasks
            else UNKNOWN
            for name in names
        )
        rows.append((run["name"], interval(run["evaluation"]["accepted_length"]), *each))
    return ReportTable("Accepted length τ (95 %)", ("run", "all", *names), tuple(rows))


def _latency(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = []
    for run in runs:
        one = run["evaluation"]
        times = (number(one[key]) for key in ("draft_ms", "verify_ms", "target_ms"))
        rows.append((run["name"], *times, number(one["predicted_speedup"]), number(one["speedup"])))
    columns = ("run", "T_draft ms", "T_verify ms", "T_target ms", "predicted ×", "measured ×")
    return ReportTable("A round at batch 1, and speed against plain decoding", columns, tuple(rows))


def _cost(runs: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows = [
        (
            run["name"],
            run["evaluation"]["strategy"],
            str(run["step"]),
            *(count(run["train"][key]) for key in ("train_tokens", "train_flops")),
            number(run["train"]["train_seconds"], 0),
        )
        for run in runs
    ]
    return ReportTable("Training", ("run", "strategy", "steps", "tokens", "FLOPs", "seconds"), tuple(rows))


def _calibration(run: Mapping[str, Any]) -> ReportTable:
    found = run["calibration"]
    shown = ("ece_before", "ece_after", "ece_floor")
    rows = [
        (
            str(k + 1),
            *(number(100 * found[key][k], 1) for key in shown),
            number(found["auc_conditional"][k]),
            number(found["auc_survival_after"][k]),
        )
        for k in range(len(found["ece_after"]))
    ]
    return ReportTable(
        f"Calibration of {run['name']}: {found['calibrator']}, {found['num_rounds']:,} held-out rounds",
        ("position", "ECE % before", "after", "floor", "AUC", "of survival"),
        tuple(rows),
    )
