"""The figures of a run's page, as SVG, from what ``portraits_json`` gives."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from deepspec.report.plots import draw_acceptance, style

Run = Mapping[str, Any]


@dataclass(frozen=True)
class ReportFigure:
    """A heading, what the picture shows in a sentence, and the SVG."""

    title: str
    caption: str
    svg: bytes


def report_figures(found: Mapping[str, Any]) -> list[ReportFigure]:
    """All figures that the data can fill, in the order of the page."""
    runs = found["runs"]
    figures = [_by_task(runs), _by_position(runs)]
    figures += [_reliability(run) for run in runs if run["reliability"]]
    if any(run["threshold_sweep"] for run in runs):
        figures.append(_sweep(runs))
    figures += [_sps(runs), _latency(runs)]
    return figures + [figure for run in runs for figure in (_frontier(run), _budget(run))]


def _drawn(size: tuple[float, float], draw: Callable[[Any], None], columns: int = 1) -> bytes:
    """The SVG of ``draw``'s axes: text as shapes and no dates, so that the same data give the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "deepspec", "svg.fonttype": "path"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(1, columns))
        image = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(image, format="svg", metadata=nothing)
    return image.getvalue()


def _by_task(runs: Sequence[Run]) -> ReportFigure:
    def draw(axes: Axes) -> None:
        tasks = list(dict.fromkeys(task for run in runs for task in run["evaluation"]["tasks"]))
        for number, run in enumerate(runs):
            for place, task in enumerate(tasks):
                one = run["evaluation"]["tasks"].get(task)
                if one is None or one["accepted_length"] is None:
                    continue
                mean, (low, high) = one["accepted_length"], one["ci95"]
                axes.errorbar(
                    [mean],
                    [place + 0.15 * (number - (len(runs) - 1) / 2)],
                    xerr=[[mean - low], [high - mean]],
                    capsize=4,
                    label=run["name"] if place == 0 else None,
                    **style(number),
                )
        axes.set_yticks(range(len(tasks)), tasks)
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.set_xlabel("accepted length τ, bonus token included")
        axes.grid(axis="x", alpha=0.3)
        axes.legend(fontsize="small")

    return ReportFigure(
        "Accepted length by task",
        "Tokens gained a round, bonus token included; 95 % bootstrap intervals over prompts.",
        _drawn((8, 2.2 + 0.3 * len(runs)), draw),
    )


def _by_position(runs: Sequence[Run]) -> ReportFigure:
    lines = [{**run["evaluation"], "name": run["name"]} for run in runs]
    return ReportFigure(
        "Conditional acceptance by position",
        "The chance that a drafted token is accepted when all before it were, with 95 % bands.",
        _drawn((8, 3.4), lambda axes: draw_acceptance(axes, lines)),
    )


def _reliability(run: Run) -> ReportFigure:
    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
        for number, way in enumerate(("before", "after")):
            bins = run["reliability"][way]
            axes.plot(bins["predicted"], bins["happened"], label=way, markersize=5, **style(number))
        axes.set(xlabel="predicted survival", ylabel="share that survived", xlim=(0, 1), ylim=(0, 1))
        axes.set_aspect("equal")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return ReportFigure(
        f"Reliability of {run['name']}",
        "Predicted against observed survival in 15 bins, all positions together, before and after "
        "calibrating; the dashed line is a perfect forecast. Points of few rounds scatter.",
        _drawn((5, 4.4), draw),
    )


def _sweep(runs: Sequence[Run]) -> ReportFigure:
    def draw(axes: Axes) -> None:
        for number, run in enumerate(runs):
            if points := run["threshold_sweep"]:
                verified, gained = (
                    [point[key] for point in points] for key in ("verified", "accepted_length")
                )
                axes.plot(verified, gained, label=run["name"], markersize=4, **style(number))
        axes.set(xlabel="drafted tokens verified a round", ylabel="accepted length τ")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return ReportFigure(
        "Threshold sweep",
        "Verifying up to the first calibrated confidence below a threshold, from 0 (top right) to 0.95 in "
        "steps of 0.05: what each verified token brings.",
        _drawn((8, 3.4), draw),
    )


def _sps(runs: Sequence[Run]) -> ReportFigure:
    def draw(axes: Axes) -> None:
        seen: list[Any] = []
        for run in runs:
            curve = run["sps_curve"]
            points = (curve["verify_tokens"], curve["steps_per_s"])
            if points in seen:
                continue
            seen.append(points)
            times = [1e3 / speed for speed in curve["steps_per_s"]]
            axes.plot(
                curve["verify_tokens"], times, markersize=4, label=curve["model"], **style(len(seen) - 1)
            )
        axes.set(xlabel="tokens in a step", ylabel="step, ms", xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize="small")

    modelled = any(run["sps_curve"]["modelled"] for run in runs)
    return ReportFigure(
        "Step time by tokens in a step",
        "1 / SPS, modelled from hardware's data sheet." if modelled else "1 / SPS, measured on this machine.",
        _drawn((8, 3.4), draw),
    )


def _latency(runs: Sequence[Run]) -> ReportFigure:
    def draw(axes: Sequence[Axes]) -> None:
        left, right = axes
        names, places = [run["name"] for run in runs], range(len(runs))
        found = [run["evaluation"] for run in runs]
        draft, verify = ([one[key] for one in found] for key in ("draft_ms", "verify_ms"))
        left.barh(places, draft, label="drafting", color=style(1)["color"])
        left.barh(places, verify, left=draft, label="target and verdict", color=style(0)["color"])
        left.axvline(found[0]["target_ms"], color="#333333", linestyle="--", label="a plain step")
        left.set_xlabel("round at batch 1, ms")
        for number, key in enumerate(("predicted_speedup", "speedup")):
            values = [one[key] or 0.0 for one in found]
            label = "predicted" if number == 0 else "measured"
            right.barh(
                [p + 0.2 * (2 * number - 1) for p in places], values, 0.38, label=label, **_fill(number)
            )
        right.axvline(1.0, color="#333333", linewidth=1)
        right.set_xlabel("speed against plain decoding")
        left.set_yticks(places, names)
        right.set_yticks(places, [""] * len(names))
        for one in (left, right):
            one.set_ylim(len(names) - 0.5, -0.5)
            one.grid(axis="x", alpha=0.3)
            one.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3)

    return ReportFigure(
        "Where a round's time goes",
        "Left: medians at batch 1. Right: T_target τ / (T_draft + T_verify) beside the measured ratio.",
        _drawn((10, 2.4 + 0.5 * len(runs)), draw, columns=2),
    )


def _fill(number: int) -> dict[str, Any]:
    return {"color": style(number + 2)["color"]}


def _frontier(run: Run) -> ReportFigure:
    def draw(axes: Axes) -> None:
        for number, one in enumerate(run["policies"]):
            points = one["points"]
            users, tokens = ([p[key] for p in points] for key in ("tokens_per_s_per_user", "tokens_per_s"))
            axes.plot(users, tokens, label=one["policy"], markersize=4, **style(number))
        axes.set(xlabel="tokens/s a user", ylabel="tokens/s, all users")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    most = run["policies"][0]["points"][-1]["concurrency"]
    return ReportFigure(
        f"Throughput against interactivity, {run['name']}",
        f"Simulated on the step times above with this run's recorded rounds, 1 to {most} requests at once.",
        _drawn((8, 3.8), draw),
    )


def _budget(run: Run) -> ReportFigure:
    concurrencies = [point["concurrency"] for point in run["policies"][0]["points"]]

    def draw(axes: Axes) -> None:
        for number, one in enumerate(run["policies"]):
            points = one["points"]
            loads, budget = ([p[key] for p in points] for key in ("concurrency", "verify_budget"))
            axes.plot(loads, budget, label=one["policy"], markersize=4, **style(number))
        axes.set(xlabel="requests at once", ylabel="tokens of a request in a step", xscale="log")
        axes.set_xticks(concurrencies, [str(value) for value in concurrencies])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return ReportFigure(
        f"Verify budget against load, {run['name']}",
        "Tokens of a request in a target step, its anchor counted, in the same simulation.",
        _drawn((8, 3.4), draw),
    )
