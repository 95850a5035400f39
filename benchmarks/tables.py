"""The README's tables, one for each kind of record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kernel_tables
import scaling_table
import scheduling_tables
import simulate_table
import train_tables
from table_cells import machine, mean_ci, ratio, tau

#: Objectives that are shown, besides the published one.
_BEST = 5


def _decoding_table(record: dict[str, Any]) -> str:
    rows = ["| temperature | τ (95 %) | speculative / plain | plain / transformers |", "|---|---|---|---|"]
    for run in record["result"]["runs"]:
        rows.append(
            f"| {run['temperature']:g} | {tau(run)} | {ratio(run['speculative_over_plain'])} "
            f"| {ratio(run['plain_over_transformers'])} |"
        )
    batch = record["result"]["batch"]
    gains = (
        f"Batch {batch['batch']} gives {ratio(batch['speculative_gain'])} the tokens/s of batch 1 "
        f"speculatively, {ratio(batch['plain_gain'])} plainly, at {batch['num_tokens']} tokens a request. "
        f"Held-out perplexity of the demo target: {record['result']['held_out_perplexity']:.1f} a token."
    )
    head = "Shipped demo target and drafter, batch 1, against transformers' `generate` with its cache:"
    return "\n".join([head, "", *rows, "", gains, "", machine(record)])


def _training_table(record: dict[str, Any]) -> str:
    rows = [
        "| strategy | temperature | τ (95 %) | conditional acceptance by position |",
        "|---|---|---|---|",
    ]
    for run in record["result"]["runs"]:
        rates = " ".join(f"{rate:.2f}".lstrip("0") for rate in run["conditional_acceptance"])
        rows.append(f"| {run['strategy']} | {run['temperature']:g} | {tau(run)} | {rates} |")
    setting = record["result"]["setting"]
    return "\n".join([f"Trained from scratch, {setting}:", "", *rows, "", machine(record)])


def _divergence_table(record: dict[str, Any]) -> str:
    found = record["result"]
    per_million = 1e6 * found["divergences"] / found["compared_tokens"]
    row = [found[key] for key in ("num_requests", "num_tokens", "batch", "divergences")]
    cells = " | ".join([*map(str, row), f"{per_million:.1f}", str(found["explained"])])
    rows = [
        "| requests | tokens each | batch | first divergences | per million tokens | explained |",
        "|---|---|---|---|---|---|",
        f"| {cells} |",
    ]
    head = (
        "The demo target's tokens under the delta rule, in float32, against plain decoding with the same "
        f"seeds; explained is a uniform within {found['margin']:g} of the step between the two tokens:"
    )
    return "\n".join([head, "", *rows, "", machine(record, "")])


def _verifiers_table(record: dict[str, Any]) -> str:
    rows = ["| temperature | block rule, τ | token rule, τ | gain (95 %) |", "|---|---|---|---|"]
    for one in record["result"]["rules"]:
        block, token = (mean_ci(one["accepted_length"][rule]) for rule in ("block", "token"))
        rows.append(f"| {one['temperature']:g} | {block} | {token} | {mean_ci(one['gain']['difference'])} |")
    head = f"What the block rule gains on the token rule, {record['result']['setting']}:"
    return "\n".join([head, "", *rows, "", machine(record, "")])


def _objectives_table(record: dict[str, Any]) -> str:
    """The best at the largest budget, and the published one, at temperature 1."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in record["result"]["summary"]:
        if row["temperature"] == 1.0:
            found.setdefault((row["objective"], row["weights"]), {})[row["steps"]] = row
    budgets = sorted({steps for of_name in found.values() for steps in of_name})
    ranked = sorted(found, key=lambda name: -_mean_at(found[name], budgets[-1]))
    shown = [name for rank, name in enumerate(ranked) if rank < _BEST or name == ("paper", "decay")]
    rows = [
        f"| objective | position weights | {' | '.join(f'τ at {steps} steps, gain' for steps in budgets)} |",
        f"|---|---|{'---|' * len(budgets)}",
    ]
    for name in shown:
        cells = [_tau_and_gain(found[name].get(steps)) for steps in budgets]
        rows.append(f"| {' | '.join([*name, *cells])} |")
    head = (
        f"DSpark by objective, temperature 1, {record['result']['setting']}; the best {_BEST} of "
        f"{len(found)} and the published one, with the paired gain on it (95 %):"
    )
    return "\n".join([head, "", *rows, "", machine(record, "")])


def _strategies_table(record: dict[str, Any]) -> str:
    """At temperature 1: each draft length's largest budget, the ratios there, and equal compute."""
    summary = record["result"]["summary"]
    sampled = {name: [one for one in summary[name] if one["temperature"] == 1.0] for name in summary}
    blocks = [f"Strategies trained from scratch: {record['result']['setting']}; temperature 1, seeds pooled."]
    for length in sorted({row["draft_length"] for row in sampled["rows"]}):
        here = {
            name: [one for one in values if one["draft_length"] == length] for name, values in sampled.items()
        }
        steps = max(row["steps"] for row in here["rows"])
        rows = [row for row in here["rows"] if row["steps"] == steps and row["is_best_rate"]]
        blocks += [f"G = {length}, {steps} steps:", "\n".join(_variant_rows(rows))]
        pairs = [
            f"{one['a']} / {one['b']} {mean_ci(one['ratio'])}"
            for one in here["ratios"]
            if one["steps"] == steps
        ]
        if pairs:
            blocks.append(f"Ratios of τ over the same prompts (95 %): {'; '.join(pairs)}.")
        blocks += [_at_equal_compute(one) for one in here["equal_compute"]]
    return "\n\n".join([*blocks, machine(record, "; speeds are medians")])


def _variant_rows(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = ("variant", "seeds", "τ (95 %)", "conditional acceptance by position", "T_draft + T_verify, ms")
    columns += ("× plain", "TFLOPs", "s")
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in sorted(rows, key=lambda row: -row["accepted_length"]["mean"]):
        rates = " ".join(
            "-" if rate is None else f"{rate:.2f}".removeprefix("0") for rate in row["conditional_acceptance"]
        )
        cells = (
            row["variant"]
            if row["learning_rate"] == "auto"
            else f"{row['variant']}, rate {row['learning_rate']}",
            str(len(row["seeds"])),
            mean_ci(row["accepted_length"]),
            rates,
            f"{row['draft_ms']:.1f} + {row['verify_ms']:.1f}",
            f"{row['speedup']:.2f}",
            f"{row['train_flops'] / 1e12:.1f}",
            str(row["train_seconds"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _at_equal_compute(found: dict[str, Any]) -> str:
    budget = {
        "train_flops": f"{found['budget'] / 1e12:.1f} TFLOPs",
        "train_seconds": f"{found['budget']:.0f} seconds",
    }[found["axis"]]
    ranked = sorted(found["accepted_length"].items(), key=lambda item: -item[1]["mean"])
    return (
        f"At {budget} of training, between budgets interpolated: "
        f"{', '.join(f'{name} {mean_ci(tau)}' for name, tau in ranked)}."
    )


def _draft_length_table(record: dict[str, Any]) -> str:
    found = record["result"]
    short, long = found["lengths_compared"]
    rows = [
        f"| requests | G | draft, ms (model) | verify, ms (model) | round, ms | {long} for {short} adds |",
        "|---|---|---|---|---|---|",
    ]
    added = {one["requests"]: one["drafting"] for one in found["added"]}
    for cell in found["cells"]:
        both = (
            f"{cell[name]['median']:.1f} ({cell['model'][name]:.1f})" for name in ("draft_ms", "verify_ms")
        )
        share = added[cell["requests"]] if cell["draft_length"] == long else None
        more = "" if share is None else "{median:.1%} ({q1:.1%} to {q3:.1%})".format(**share)
        whole = "{median:.1f} ({q1:.1f}–{q3:.1f})".format(**cell["round_ms"])
        rows.append(
            f"| {cell['requests']} | {cell['draft_length']} | {' | '.join(both)} | {whole} | {more} |"
        )
    low, high = found["published_share_at_128"]
    head = (
        f"What drafting more takes: {found['strategy']}, on the demo target, everything verified; the last "
        "column is what drafting alone adds, as a share of the shorter round. The model is the larger of "
        "arithmetic and weights read, without attention, sampling and host. Published, on GPUs at batch 128: "
        f"{low:.1%} to {high:.1%}."
    )
    return "\n".join([head, "", *rows, "", machine(record)])


def _mean_at(rows: dict[int, dict[str, Any]], steps: int) -> float:
    return float(rows[steps]["accepted_length"]["mean"]) if steps in rows else 0.0


def _tau_and_gain(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    tau = f"{row['accepted_length']['mean']:.2f}"
    if "gain" not in row:
        return tau
    low, high = row["gain"]["ci95"]
    return f"{tau}, {row['gain']['mean']:+.2f} ({low:+.2f} to {high:+.2f})"


#: The table of each kind of record, in the README's order.
TABLES = {
    "decoding": _decoding_table,
    "verifiers": _verifiers_table,
    "training": _training_table,
    "scaling": scaling_table.table,
    "objectives": _objectives_table,
    "strategies": _strategies_table,
    "strategies-cuda": _strategies_table,
    "divergence": _divergence_table,
    "draft-length": _draft_length_table,
    "verify-kernel": kernel_tables.verify_kernel,
    "loss": kernel_tables.loss,
    "train-step": train_tables.step,
    "train-cached": train_tables.cached,
    "calibration": scheduling_tables.calibration,
    "simulate": simulate_table.table,
    "engine-load": scheduling_tables.engine_load,
}
