"""Dated records of measurements, with what is needed to repeat them; and their part of the README.

``python benchmarks/records.py`` rewrites the README's tables from the newest records; ``--check`` compares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import simulate_table

from deepspec.environment import device_name, versions
from deepspec.paths import written_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def environment() -> dict[str, Any]:
    """Date, the device that is taken when none is named, versions and commit."""
    import torch

    from deepspec.target.load import resolve_device

    device = resolve_device(None)
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(tz=UTC).strftime("%Y-%m-%d"),
        "device": device_name(device),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or None,
        "versions": versions(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "q1": round(low, 4), "q3": round(high, 4)}


def write(
    kind: str, result: dict[str, Any], *, seed: int, warm_up: str, repeats: str, date: str | None = None
) -> list[str]:
    """Store a record as ``results/<date>-<kind>.json``; returns lines that say where and under what.

    ``date`` is that of a record that is gone on with, today's when None.
    """
    protocol = {"seed": seed, "warm_up": warm_up, "repeats": repeats}
    record = {"kind": kind, **environment(), **protocol, "result": result}
    record["date"] = date or record["date"]
    path = RESULTS / f"{record['date']}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n")
    named = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return [
        f"{record['device']} ({record['device_type']}), {record['threads']} threads; {named}",
        f"commit {record['commit']}; seed {seed}; warm-up: {warm_up}; repeats: {repeats}",
        f"record: {path}",
    ]


def newest(kind: str) -> dict[str, Any] | None:
    """The latest record of a kind."""
    paths = sorted(RESULTS.glob(f"*-{kind}.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def tables() -> str:
    """The README's measured section, from the newest records alone; FileNotFoundError without any."""
    found = ((table, newest(kind)) for kind, table in _TABLES.items())
    parts = [table(record) for table, record in found if record is not None]
    if not parts:
        raise FileNotFoundError(f"no record lies in {RESULTS}; run `make bench`")
    return "\n\n".join(parts)


def _decoding_table(record: dict[str, Any]) -> str:
    rows = ["| temperature | τ (95 %) | speculative / plain | plain / transformers |", "|---|---|---|---|"]
    for run in record["result"]["runs"]:
        rows.append(
            f"| {run['temperature']:g} | {_tau(run)} | {_ratio(run['speculative_over_plain'])} "
            f"| {_ratio(run['plain_over_transformers'])} |"
        )
    batch = record["result"]["batch"]
    gains = (
        f"Batch {batch['batch']} gives {_ratio(batch['speculative_gain'])} the tokens/s of batch 1 "
        f"speculatively, {_ratio(batch['plain_gain'])} plainly, at {batch['num_tokens']} tokens a request. "
        f"Held-out perplexity of the demo target: {record['result']['held_out_perplexity']:.1f} a token."
    )
    head = "Shipped demo target and drafter, batch 1, against transformers' `generate` with its cache:"
    return "\n".join([head, "", *rows, "", gains, "", _machine(record)])


def _training_table(record: dict[str, Any]) -> str:
    rows = [
        "| strategy | temperature | τ (95 %) | conditional acceptance by position |",
        "|---|---|---|---|",
    ]
    for run in record["result"]["runs"]:
        rates = " ".join(f"{rate:.2f}".lstrip("0") for rate in run["conditional_acceptance"])
        rows.append(f"| {run['strategy']} | {run['temperature']:g} | {_tau(run)} | {rates} |")
    setting = record["result"]["setting"]
    return "\n".join([f"Trained from scratch, {setting}:", "", *rows, "", _machine(record)])


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
    return "\n".join([head, "", *rows, "", _machine(record, "")])


def _verifiers_table(record: dict[str, Any]) -> str:
    rows = ["| temperature | block rule, τ | token rule, τ | gain (95 %) |", "|---|---|---|---|"]
    for one in record["result"]["rules"]:
        block, token = (_mean_ci(one["accepted_length"][rule]) for rule in ("block", "token"))
        rows.append(f"| {one['temperature']:g} | {block} | {token} | {_mean_ci(one['gain']['difference'])} |")
    head = f"What the block rule gains on the token rule, {record['result']['setting']}:"
    return "\n".join([head, "", *rows, "", _machine(record, "")])


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
    return "\n".join([head, "", *rows, "", _machine(record, "")])


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
            f"{one['a']} / {one['b']} {_mean_ci(one['ratio'])}"
            for one in here["ratios"]
            if one["steps"] == steps
        ]
        if pairs:
            blocks.append(f"Ratios of τ over the same prompts (95 %): {'; '.join(pairs)}.")
        blocks += [_at_equal_compute(one) for one in here["equal_compute"]]
    return "\n\n".join([*blocks, _machine(record, "; speeds are medians")])


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
            _mean_ci(row["accepted_length"]),
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
        f"{', '.join(f'{name} {_mean_ci(tau)}' for name, tau in ranked)}."
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
    return "\n".join([head, "", *rows, "", _machine(record)])


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


_TABLES = {
    "decoding": _decoding_table,
    "verifiers": _verifiers_table,
    "training": _training_table,
    "objectives": _objectives_table,
    "strategies": _strategies_table,
    "strategies-cuda": _strategies_table,
    "divergence": _divergence_table,
    "draft-length": _draft_length_table,
    "simulate": simulate_table.table,
}
_BEST = 5


def _tau(run: dict[str, Any]) -> str:
    return _mean_ci(run["accepted_length"])


def _mean_ci(found: dict[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:.2f} ({low:.2f}–{high:.2f})"


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.2f}× ({value['q1']:.2f}–{value['q3']:.2f})"


def _machine(record: dict[str, Any], statistics: str = "; medians with quartiles") -> str:
    versions = record["versions"]
    limit = " Not measured on a GPU." if record["device_type"] == "cpu" else ""
    return (
        f"{record['date']}, {record['device']}, {record['threads']} threads, torch {versions['torch']}, "
        f"transformers {versions['transformers']}{statistics}.{limit}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = README.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    wanted = f"{head}{BEGIN}\n{tables()}\n{END}{tail}"
    if parser.parse_args().check:
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
