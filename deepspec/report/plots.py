"""The picture of a comparison: conditional acceptance by draft position, and accepted lengths."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Run = Mapping[str, Any]

#: A position that fewer rounds looked at says too little to draw.
MIN_LOOKS = 30
#: Okabe & Ito's colours, which colour-blind readers can tell apart, and marks for those who print in grey.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = "osD^vPX*"
_Z = 1.96


def comparison_png(comparison: Mapping[str, Any]) -> bytes:
    """A PNG image of a comparison's JSON."""
    runs = comparison["runs"]
    figure = Figure(figsize=(10, 3.2 + 0.22 * len(runs)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    draw_acceptance(left, runs)
    _draw_lengths(right, runs)
    figure.suptitle(
        f"{comparison['target']}, temperature {comparison['temperature']:g}, "
        f"{comparison['num_prompts']} prompts"
    )
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def wilson(accepted: int, observed: int) -> tuple[float, float]:
    """The 95 % interval of a rate (Wilson 1927), as if rounds were independent."""
    rate, weight = accepted / observed, _Z**2 / observed
    middle = (rate + weight / 2) / (1 + weight)
    reach = _Z * math.sqrt(rate * (1 - rate) / observed + weight / (4 * observed)) / (1 + weight)
    return middle - reach, middle + reach


def style(number: int) -> dict[str, Any]:
    """Colour and mark of a line, by its number."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKS[number % len(_MARKS)]}


def draw_acceptance(axes: Axes, runs: Sequence[Run]) -> None:
    """Conditional acceptance by position with its band, a line a run."""
    for number, run in enumerate(runs):
        counts = zip(run["counts"]["accepted"], run["counts"]["observed"], strict=True)
        known = [(k, a, n) for k, (a, n) in enumerate(counts, start=1) if n >= MIN_LOOKS]
        positions = [k for k, _, _ in known]
        bounds = [wilson(a, n) for _, a, n in known]
        look = style(number)
        axes.plot(positions, [a / n for _, a, n in known], label=run["name"], markersize=5, **look)
        low, high = [low for low, _ in bounds], [high for _, high in bounds]
        axes.fill_between(positions, low, high, color=look["color"], alpha=0.15, linewidth=0)
        if len(positions) == 1:  # a band over one position is not seen
            axes.vlines(positions, low, high, color=look["color"], alpha=0.5)
    longest = max(run["draft_length"] for run in runs)
    axes.set(xlabel="draft position", ylabel="conditional acceptance", ylim=(0, 1), xlim=(0.5, longest + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_lengths(axes: Axes, runs: Sequence[Run]) -> None:
    for number, run in enumerate(runs):
        length = run["accepted_length"]
        if length["mean"] is not None:
            low, high = length["ci95"]
            reach = [[length["mean"] - low], [high - length["mean"]]]
            axes.errorbar([length["mean"]], [number], xerr=reach, capsize=4, **style(number))
    axes.set_yticks(range(len(runs)), [run["name"] for run in runs])
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlabel("accepted length τ, bonus token included (95 %)")
    axes.grid(axis="x", alpha=0.3)
