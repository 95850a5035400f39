"""The table that ends a training and an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.table import Table

from deepspec.cli.console import table

if TYPE_CHECKING:
    from deepspec.evaluate import EvalReport


def result_table(report: EvalReport) -> Table:
    """Accepted length, acceptance per position, times and speeds."""
    found = report.to_json()
    rows = [
        ("strategy", f"{found['strategy']}, draft length {found['draft_length']}"),
        ("target", f"{found['target']} on {found['device']}, temperature {found['temperature']:g}"),
        ("verified by", f"{found['verifier']}, kernel {found['verify_kernel']}"),
        ("measured on", f"{found['num_prompts']} prompts, {found['num_rounds']} rounds"),
        ("accepted length τ", interval(found["accepted_length"])),
        *_gain(found["verifier_gain"]),
        *((f"  {name}", _number(task["accepted_length"], ".3f")) for name, task in found["tasks"].items()),
        ("conditional acceptance", _rates(found["conditional_acceptance"])),
        ("survival", _rates(found["survival"])),
        (
            "T_draft, T_verify",
            f"{_number(found['draft_ms'], '.2f')} ms, {_number(found['verify_ms'], '.2f')} ms a round",
        ),
        ("speculative decoding", _speed(found["tokens_per_s"])),
        ("plain, same engine", _speed(found["tokens_per_s_plain"])),
        ("transformers' generate", _speed(found["tokens_per_s_transformers"])),
        ("predicted speed", f"{_times(found['predicted_speedup'])} plain decoding"),
        ("measured speed", f"{_times(found['speedup'])} plain decoding{_against_transformers(report)}"),
    ]
    return table(("result", ""), rows)


def _gain(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    return [] if found is None else [(f"  less that of {found['against']}", interval(found["difference"]))]


def _against_transformers(report: EvalReport) -> str:
    other = report.tokens_per_s_transformers
    return f", {_times(report.tokens_per_s / other)} transformers' generate" if other else ""


def interval(found: dict[str, Any]) -> str:
    """An accepted length, ``{"mean", "ci95"}``, in words."""
    if found["mean"] is None:
        return "- (no prompt lasted a round)"
    low, high = found["ci95"]
    return f"{found['mean']:.3f}  (95 % interval {low:.3f} to {high:.3f})"


def _rates(rates: Iterable[float | None]) -> str:
    return "  ".join(_number(rate, ".3f") for rate in rates)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _speed(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.1f} tokens/s"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}×"
