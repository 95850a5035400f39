"""A comparison as tables, picture and page: every number is there, in 80 columns, and nothing is loaded."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from rich.console import Console

from deepspec.cli.console import table
from deepspec.report.page import comparison_html
from deepspec.report.plots import MIN_LOOKS, comparison_png, wilson
from deepspec.report.tables import comparison_tables, count, interval


def made_run(name: str, length: int, **changes: object) -> dict[str, Any]:
    return {
        "name": name,
        "strategy": "toy",
        "draft_length": length,
        "accepted_length": {"mean": 2.125, "ci95": [2.0, 2.25]},
        "conditional_acceptance": [0.5] * (length - 1) + [None],
        "counts": {"observed": [400] * (length - 1) + [0], "accepted": [200] * (length - 1) + [0]},
        "draft_ms": 1.5,
        "verify_ms": 12.25,
        "speedup": 1.31,
        "speedup_batch16": 0.9,
        "parameters": 1_384_000,
        "train_tokens": 921_600,
        "train_seconds": 205.4,
        "train_flops": 23_400_000_000_000,
        "train_flops_target": 9_000_000_000_000,
        **changes,
    }


def made(*runs: dict[str, Any]) -> dict[str, Any]:
    pair = {"a": runs[0]["name"], "b": runs[-1]["name"], "ratio": 1.25, "ratio_ci95": [1.2, 1.3]}
    pair["difference"] = {"mean": -0.25, "ci95": [-0.3, 0.05]}
    return {
        "schema": 1,
        "runs": list(runs),
        "paired": [pair] if len(runs) > 1 else [],
        "target": "demo",
        "device": "cpu",
        "temperature": 1.0,
        "num_prompts": 128,
        "max_tokens": 128,
        "seed": 0,
        "versions": {"torch": "2.13.0"},
    }


OLD = {"train_tokens": None, "train_seconds": None, "train_flops": None, "train_flops_target": None}
COMPARISON = made(made_run("new", 7), made_run("old<1>", 15, **OLD))


def shown(comparison: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as caught:
        for one in comparison_tables(comparison):
            console.print(one.title)
            console.print(table(one.columns, one.rows))
    return caught.get()


def test_every_number_is_in_a_table_and_what_is_not_known_is_a_dash():
    text = re.sub(r" +", " ", shown(COMPARISON))
    assert "new 7 2.12 (2.00 to 2.25) .50 .50 .50 .50 .50 .50 -" in text
    assert "new 1.50 12.25 1.31× 0.90×" in text
    assert "new toy 1.38 M 922 K 23.4 T 9 T 205" in text
    assert "old<1> toy 1.38 M - - - -" in text
    assert "new old<1> -0.25 (-0.30 to +0.05) 1.25 (1.20 to 1.30)" in text


def test_tables_fit_80_columns_with_names_as_long_as_they_come():
    long = "/home/somebody/experiments/runs/dspark-20261124-120000"
    text = shown(made(made_run(long, 15), made_run(f"{long}-2", 7), made_run("short", 7)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_a_run_alone_has_no_differences():
    assert [one.title.split()[0] for one in comparison_tables(made(made_run("new", 7)))] == [
        "Accepted",
        "Time",
        "Training,",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (999.7, "1 K"), (1_384_000, "1.38 M"), (2.34e13, "23.4 T")],
)
def test_counts_have_three_digits_and_a_unit(value, text):
    assert count(value) == text


def test_without_a_round_there_is_a_dash():
    nothing = {"mean": None, "ci95": None}
    assert interval(nothing) == "-"
    bare = made_run("bare", 2, accepted_length=nothing, counts={"observed": [0, 0], "accepted": [0, 0]})
    assert comparison_png(made(bare, made_run("new", 7)))[:4] == b"\x89PNG"


def test_the_band_of_a_rate_holds_it_and_narrows_with_looks():
    for accepted, observed in ((0, 30), (30, 30), (15, 30)):
        low, high = wilson(accepted, observed)
        assert -1e-9 <= low <= accepted / observed <= high <= 1 + 1e-9
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_the_picture_draws_positions_that_enough_rounds_looked_at(monkeypatch):
    drawn, limits = [], []
    from matplotlib.axes import Axes

    plot = Axes.plot

    def noted(axes, positions, rates, **style):
        drawn.append((list(positions), list(rates)))
        return plot(axes, positions, rates, **style)

    monkeypatch.setattr(Axes, "plot", noted)
    monkeypatch.setattr(Axes, "set", lambda axes, **settings: limits.append(settings["xlim"]))
    counts = {"observed": [100, MIN_LOOKS, MIN_LOOKS - 1], "accepted": [75, 15, 14]}
    image = comparison_png(made(made_run("one", 3, counts=counts)))
    assert drawn == [([1, 2], [0.75, 0.5])]
    assert limits == [(0.5, 3.5)]  # every draft position has its place, also when one or none is drawn
    assert image[:4] == b"\x89PNG"


def test_an_uncertainty_is_seen_also_where_one_position_is_drawn(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "vlines", lambda axes, *bounds, **style: drawn.append(bounds))
    one = {"observed": [100, MIN_LOOKS - 1], "accepted": [50, 15]}
    comparison_png(made(made_run("one", 2, counts=one)))
    assert drawn == [([1], [wilson(50, 100)[0]], [wilson(50, 100)[1]])]


def test_the_page_loads_nothing_and_holds_the_picture_and_every_table():
    png = comparison_png(COMPARISON)
    page = comparison_html(COMPARISON, png)
    assert "://" not in page
    assert re.findall(r'(?:src|href)="(.{15})', page) == ["data:image/png;"]
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert "old&lt;1&gt;" in page
    assert "old<1>" not in page
    for one in comparison_tables(COMPARISON):
        for cell in (*one.columns, *one.rows[0]):
            assert f">{html.escape(cell)}</t" in page.replace("&#39;", "&#x27;")
