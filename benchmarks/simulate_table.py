"""The README's table of a record of ``simulate.py``: length policies under simulated load."""

from __future__ import annotations

from typing import Any

TARGETS = ("4b", "70b")
#: Of the loads of a record; its ``least`` ratios are over all.
SHOWN = (1, 8, 32, 128, 512)


def table(record: dict[str, Any]) -> str:
    """Ratios of throughput and verify budgets by load, then the smallest ratios and what speed each gives."""
    found = record["result"]
    columns = (
        "target",
        "at once",
        "`frugal` / plain",
        "/ best fixed",
        "/ oracle",
        "`prefix` / oracle",
        "budgets",
    )
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for target in TARGETS:
        rows += [_row(target, point) for point in found[target]["smooth"] if point["concurrency"] in SHOWN]
    head = (
        "Length policies under simulated load, on the roofline of an H200 (modelled, not measured), "
        "acceptance fitted to published lengths; best fixed is the best of 0, 1, 2, 4 and 7 tokens, and "
        "budgets are `frugal`'s and `prefix`'s tokens of a request in a step:"
    )
    seconds = max(one["processor_s"] for one in found["speed"].values())
    foot = (
        f"{record['date']}, {record['repeats']}; 100,000 steps at 200 requests take at most {seconds:.0f} s "
        f"of one core{': ' * bool(found['note'])}{found['note']}."
    )
    summaries = [_summary(target, found[target]) for target in TARGETS]
    return "\n\n".join([head, "\n".join(rows), *summaries, foot])


def _row(target: str, point: dict[str, Any]) -> str:
    policies = point["policies"]
    tokens = {name: one["tokens_per_s"] for name, one in policies.items()}
    best = max(value for name, value in tokens.items() if name.startswith("fixed"))
    ratios = (
        tokens["frugal"] / tokens["fixed:length=0"],
        tokens["frugal"] / best,
        tokens["frugal"] / tokens["oracle"],
        tokens["prefix"] / tokens["oracle"],
    )
    budgets = " ".join(f"{policies[name]['verify_budget']:.1f}" for name in ("frugal", "prefix"))
    return f"| {target} | {point['concurrency']} | {' | '.join(f'{one:.3f}' for one in ratios)} | {budgets} |"


def _summary(target: str, found: dict[str, Any]) -> str:
    of = found["summary"]
    middle, crossing = of["at_equal_speed"]["middle"], of["on_stairs"]["cliff_over_prefix"]
    return (
        f"{target}: over all loads `frugal` is at least {of['frugal_over_plain']:.3f} of plain decoding, "
        f"{of['frugal_over_best_fixed']:.3f} of best fixed and {of['frugal_over_oracle']:.3f} of the oracle, "
        f"`prefix` {of['prefix_over_plain']:.3f}, {of['prefix_over_best_fixed']:.3f} and "
        f"{of['prefix_over_oracle']:.3f}; where each user has {middle['tokens_per_s_per_user']:.0f} "
        "tokens/s, the middle between one-token drafting's ends, `frugal` gives "
        f"{middle['frugal_gain']:.2f}× its tokens and "
        f"`prefix` {middle['prefix_gain']:.2f}×; on stairs of 64 tokens `cliff` gives {min(crossing):.2f} to "
        f"{max(crossing):.2f}× `prefix`."
    )
