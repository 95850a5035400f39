"""The closing table: every number that was measured is in it, and what was not is said."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from deepspec.cli.console import table
from deepspec.cli.results import result_table
from deepspec.evaluate import EvalReport, Interval, PositionRates, TaskResult

REPORT = EvalReport(
    strategy="toy",
    verifier="token",
    target="demo",
    device="cpu",
    verify_kernel="reference",
    draft_length=2,
    temperature=1.0,
    num_prompts=8,
    num_rounds=40,
    accepted_length=Interval(2.125, 2.0, 2.25),
    rates=PositionRates(observed=(40, 0), accepted=(30, 0)),
    tokens_per_s=100.0,
    tokens_per_s_plain=50.0,
    speedup=1.98,
    predicted_speedup=2.1,
    draft_ms=1.5,
    verify_ms=12.25,
    target_ms=11.0,
    tokens_per_s_transformers=40.0,
    tasks={"code": TaskResult(Interval(2.5, 2.4, 2.6), 8)},
    versions={},
)


def lines(report: EvalReport) -> dict[str, str]:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(result_table(report))
    pairs = (line.split("  ", 1) for line in shown.get().splitlines() if "  " in line.strip())
    return {name.strip(): value.strip() for name, value in pairs if name}


def test_every_measured_number_is_shown() -> None:
    shown = lines(REPORT)
    assert shown["accepted length τ"] == "2.125  (95 % interval 2.000 to 2.250)"
    assert shown["conditional acceptance"] == "0.750  -"
    assert shown["T_draft, T_verify"] == "1.50 ms, 12.25 ms a round"
    assert shown["predicted speed"] == "2.10× plain decoding"
    assert shown["measured speed"] == "1.98× plain decoding, 2.50× transformers' generate"


def test_what_was_not_measured_is_said() -> None:
    bare = dataclasses.replace(
        REPORT, accepted_length=None, predicted_speedup=None, tokens_per_s_transformers=None
    )
    shown = lines(bare)
    assert shown["accepted length τ"] == "- (no prompt lasted a round)"
    assert shown["transformers' generate"] == "not measured"
    assert shown["predicted speed"] == "- plain decoding"
    assert shown["measured speed"] == "1.98× plain decoding"


def test_brackets_in_a_table_are_no_markup() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(table(("a",), [("[bold]x",)]))
    assert "[bold]x" in shown.get()
