"""What the cells of ``strategies.py`` say: at equal tokens, at equal compute, and pair by pair.

Seeds of one variant are pooled prompt by prompt. Intervals are bootstraps over prompts, with the same draws
for all variants, so that ratios are paired; how far seeds agree is shown beside them. Where several learning
rates were tried, the one with the largest accepted length at temperature 1 stands for the variant. At equal
compute, accepted length is interpolated between budgets that were each trained with a schedule of their own,
linearly in the logarithm of what training took.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from objectives import pooled
from rich.table import Table

from deepspec.evaluate.acceptance import PromptLength, resampled_sums
from deepspec.report.tables import count, interval, number, rates

Result = dict[str, Any]
Draws = NDArray[np.float64]
#: Cells that differ by their seed alone: variant, draft length, steps, learning rate.
Key = tuple[str, int, int, str]

TEMPERATURES = (1.0, 0.0)
#: Each with what it is to be compared with.
CLAIMS = (
    ("dspark-2", "dflash-2"),
    ("dspark-5", "dflash-5"),
    ("dspark-2", "dflash-5"),
    ("dspark-2", "eagle3"),
    ("dspark-5", "eagle3"),
    ("dspark-2", "eagle3-every"),
    ("dspark-5", "eagle3-every"),
    ("dspark-2", "mtp-recycled"),
    ("dspark-2", "mtp-distinct"),
    ("dspark-2", "draft_model"),
    ("dspark-2", "dspark-2-none"),
    ("dspark-2-gated", "dspark-2"),
    ("dspark-2-rnn", "dspark-2"),
)
AXES = {"train_flops": "FLOPs", "train_seconds": "seconds"}


def summarise(cells: Sequence[Result]) -> Result:
    """Everything that a record says beside its cells."""
    groups: dict[Key, dict[int, Result]] = {}
    for cell in cells:
        key = (cell["variant"], cell["draft_length"], cell["steps"], cell["learning_rate"])
        groups.setdefault(key, {})[cell["seed"]] = cell
    chosen = best(groups)
    rows = [
        {**row(key, groups[key], temperature), "is_best_rate": key in chosen}
        for key in groups
        for temperature in TEMPERATURES
    ]
    return {
        "rows": rows,
        "ratios": [*ratios(chosen)],
        "equal_compute": [*equal_compute(chosen)],
    }


def best(groups: dict[Key, dict[int, Result]]) -> dict[Key, dict[int, Result]]:
    """Of each variant, draft length and budget, the learning rate that did best."""
    ranked = sorted(groups, key=lambda key: -draws(groups[key].values(), 1.0)[0])
    found: dict[tuple[str, int, int], Key] = {}
    for key in ranked:
        found.setdefault(key[:3], key)
    return {key: cells for key, cells in groups.items() if key in found.values()}


def row(key: Key, seeds: dict[int, Result], temperature: float) -> Result:
    """One variant at one budget: accepted length over its seeds, times, and what training took."""
    variant, draft_length, steps, rate = key
    found = [at(cell, temperature) for cell in seeds.values()]
    accepted, observed = (
        np.sum([one["counts"][side] for one in found], axis=0) for side in ("accepted", "observed")
    )
    times = ("draft_ms", "verify_ms", "speedup", "speedup_batch16")
    costs = ("parameters", "train_tokens", "train_seconds", "train_flops", "train_flops_target")
    return {
        "variant": variant,
        "draft_length": draft_length,
        "steps": steps,
        "learning_rate": rate,
        "temperature": temperature,
        "seeds": sorted(seeds),
        "accepted_length": as_json(draws(seeds.values(), temperature)),
        "by_seed": [round(one["accepted_length"]["mean"], 4) for one in found],
        "conditional_acceptance": [
            round(float(a / n), 4) if n else None for a, n in zip(accepted, observed, strict=True)
        ],
        **{name: round(statistics.median(one[name] for one in found), 4) for name in times},
        **{name: round(statistics.mean(cell[name] for cell in seeds.values())) for name in costs},
    }


def ratios(groups: dict[Key, dict[int, Result]]) -> Iterable[Result]:
    """The claims at equal tokens, over the seeds that both sides have."""
    by_budget: dict[tuple[int, int], dict[str, dict[int, Result]]] = {}
    for (variant, draft_length, steps, _), seeds in groups.items():
        by_budget.setdefault((draft_length, steps), {})[variant] = seeds
    for (budget, found), (a, b), temperature in itertools.product(by_budget.items(), CLAIMS, TEMPERATURES):
        shared = sorted(found.get(a, {}).keys() & found.get(b, {}).keys())
        if shared:
            sides = [draws([found[name][seed] for seed in shared], temperature) for name in (a, b)]
            single = [[draws([found[name][seed]], temperature)[0] for name in (a, b)] for seed in shared]
            yield {
                "a": a,
                "b": b,
                "draft_length": budget[0],
                "steps": budget[1],
                "temperature": temperature,
                "seeds": shared,
                "difference": as_json(sides[0] - sides[1]),
                "ratio": as_json(sides[0] / sides[1]),
                "ratio_by_seed": [round(float(one / other), 4) for one, other in single],
            }


def equal_compute(groups: dict[Key, dict[int, Result]]) -> Iterable[Result]:
    """Accepted length at the largest cost that every variant with two budgets or more has reached."""
    lengths = sorted({key[1] for key in groups})
    for draft_length, axis, temperature in itertools.product(lengths, AXES, TEMPERATURES):
        curves: dict[str, list[tuple[float, Draws]]] = {}
        for key, seeds in groups.items():
            if key[1] == draft_length:
                cost = statistics.mean(cell[axis] for cell in seeds.values())
                curves.setdefault(key[0], []).append((cost, draws(seeds.values(), temperature)))
        curves = {name: sorted(curve, key=lambda p: p[0]) for name, curve in curves.items() if len(curve) > 1}
        if len(curves) < 2:
            continue
        budget = min(curve[-1][0] for curve in curves.values())
        found = {name: interpolated(curve, budget) for name, curve in curves.items()}
        reached = {name: value for name, value in found.items() if value is not None}
        yield {
            "draft_length": draft_length,
            "temperature": temperature,
            "axis": axis,
            "budget": round(budget, 1),
            "accepted_length": {name: as_json(value) for name, value in reached.items()},
            "beyond": sorted(found.keys() - reached.keys()),
            "ratios": [
                {"a": a, "b": b, "ratio": as_json(reached[a] / reached[b])}
                for a, b in CLAIMS
                if a in reached and b in reached
            ],
        }


def interpolated(curve: Sequence[tuple[float, Draws]], budget: float) -> Draws | None:
    """Accepted length at ``budget``, or None when even the curve's first point takes more."""
    if budget < curve[0][0]:
        return None
    place = next(index for index in range(1, len(curve)) if budget <= curve[index][0])
    (low, before), (high, after) = curve[place - 1 : place + 1]
    share = np.log(budget / low) / np.log(high / low)
    return (1 - share) * before + share * after


def draws(cells: Iterable[Result], temperature: float) -> Draws:
    """Accepted length of drafters pooled: as measured first, then in each resample of the prompts."""
    table = np.array(pooled([prompt_lengths(at(cell, temperature)) for cell in cells]), dtype=np.float64)
    sums = np.vstack([table.sum(axis=0), resampled_sums(table, seed=0)])
    return sums[:, 0] / sums[:, 1]


def prompt_lengths(found: Result) -> list[PromptLength]:
    """The tokens/rounds of each prompt."""
    pairs = (pair.split("/") for pair in found["prompts"].split())
    return [PromptLength(int(gained), int(rounds)) for gained, rounds in pairs]


def at(cell: Result, temperature: float) -> Result:
    """What a cell came to at one temperature."""
    return next(one for one in cell["measured"] if one["temperature"] == temperature)


def as_json(values: Draws) -> Result:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {"mean": round(float(values[0]), 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def show(summary: Result) -> Iterable[Table]:
    """The summary as tables for a terminal."""
    places = sorted({(one["draft_length"], one["temperature"]) for one in summary["rows"]})
    for place in places:
        where = f"G = {place[0]}, temperature {place[1]:g}"
        here = {
            name: [one for one in values if (one["draft_length"], one["temperature"]) == place]
            for name, values in summary.items()
        }
        yield tokens_table(here["rows"], f"At equal tokens: {where}")
        if here["ratios"]:
            yield ratio_table(here["ratios"], f"Pairs at equal tokens: {where}")
        for one in here["equal_compute"]:
            budget = f"{count(one['budget'])} {AXES[one['axis']]}"
            yield compute_table(one, f"At {budget} of training: {where}")


def tokens_table(rows: Sequence[Result], title: str) -> Table:
    columns = (
        "steps",
        "variant",
        "rate",
        "τ (95 %)",
        "by seed",
        "acceptance",
        "ms",
        "×1",
        "×16",
        "FLOPs",
        "s",
    )
    table = Table(*columns, title=title)
    for one in sorted(rows, key=lambda one: (one["steps"], -one["accepted_length"]["mean"])):
        table.add_row(
            str(one["steps"]),
            one["variant"],
            str(one["learning_rate"]),
            interval(one["accepted_length"]),
            " ".join(number(value) for value in one["by_seed"]),
            rates(one["conditional_acceptance"]),
            f"{number(one['draft_ms'], 1)} + {number(one['verify_ms'], 1)}",
            number(one["speedup"]),
            number(one["speedup_batch16"]),
            count(one["train_flops"]),
            str(one["train_seconds"]),
        )
    return table


def ratio_table(pairs: Sequence[Result], title: str) -> Table:
    table = Table("steps", "a", "b", "a - b (95 %)", "a / b (95 %)", "a / b by seed", title=title)
    for one in pairs:
        by_seed = " ".join(number(value) for value in one["ratio_by_seed"])
        sides = (interval(one["difference"], "+"), interval(one["ratio"]))
        table.add_row(str(one["steps"]), one["a"], one["b"], *sides, by_seed)
    return table


def compute_table(found: Result, title: str) -> Table:
    table = Table("variant, or a / b", "τ, or ratio (95 %)", title=title)
    for name, value in sorted(found["accepted_length"].items(), key=lambda item: -item[1]["mean"]):
        table.add_row(name, interval(value))
    for name in found["beyond"]:
        table.add_row(name, "its smallest budget took more")
    for one in found["ratios"]:
        table.add_row(f"{one['a']} / {one['b']}", interval(one["ratio"]))
    return table
