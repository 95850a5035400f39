"""The page of runs: every figure and table is on it, it loads nothing, and a browser shows it whole."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from deepspec.report.page import report_html

FIGURES = (
    "Accepted length by task",
    "Conditional acceptance by position",
    "Reliability of new",
    "Threshold sweep",
    "Step time by tokens in a step",
    "Where a round's time goes",
    "Throughput against interactivity, new",
    "Verify budget against load, new",
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def made_run(name: str, **changes: Any) -> dict[str, Any]:
    task = {"accepted_length": 2.5, "ci95": [2.25, 2.75], "num_prompts": 64}
    evaluation = {
        "strategy": "toy",
        "target": "demo<1>",
        "device": "cpu",
        "temperature": 1.0,
        "num_prompts": 128,
        "draft_length": 3,
        "accepted_length": {"mean": 2.125, "ci95": [2.0, 2.25]},
        "counts": {"observed": [400, 200, 90], "accepted": [300, 120, 50]},
        "tasks": {"stdlib": task, "prose": {**task, "accepted_length": None, "ci95": None}},
        "draft_ms": 1.5,
        "verify_ms": 12.25,
        "target_ms": 9.0,
        "predicted_speedup": None,
        "speedup": 1.31,
        "versions": {"torch": "2.13.0"},
    }
    calibration = {"calibrator": "sequential", "num_rounds": 3303}
    for key in ("ece_before", "ece_after", "ece_floor", "auc_conditional", "auc_survival_after"):
        calibration[key] = [0.125, 0.25, 0.5]  # type: ignore[assignment]
    bins = {"predicted": [0.1, 0.9], "happened": [0.2, 0.8], "count": [10, 20]}
    point = {"tokens_per_s": 100.0, "tokens_per_s_per_user": 50.0, "verify_budget": 2.0}
    return {
        "name": name,
        "step": 450,
        "evaluation": evaluation,
        "calibration": calibration,
        "reliability": {"before": bins, "after": bins},
        "threshold_sweep": [{"threshold": 0.0, "verified": 3.0, "accepted_length": 2.1}],
        "sps_curve": {
            "verify_tokens": [1, 8, 64],
            "steps_per_s": [90.0, 60.0, 20.0],
            "modelled": False,
            "model": "demo",
            "hardware": "CPU",
        },
        "policies": [
            {"policy": policy, "points": [{"concurrency": n, **point} for n in (1, 2, 4)]}
            for policy in ("fixed", "prefix")
        ],
        "train": {"train_tokens": 921_600, "train_flops": None, "train_seconds": 205.4},
        "config": {"seed": 0, "strategy": {"name": "toy"}},
        **changes,
    }


def bare(name: str) -> dict[str, Any]:
    """A run whose head gives no confidence."""
    return made_run(name, calibration=None, reliability=None, threshold_sweep=[])


class Page(HTMLParser):
    """What a page refers to, its headings, and its pictures with their words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.headings: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.text, self._in_heading = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._in_heading = tag == "h2"
        self.references += [str(found[key]) for key in ("src", "href", "srcset", "action") if key in found]
        if tag == "img":
            self.pictures.append((str(found["alt"]), str(found["src"])))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"
        if self._in_heading:
            self.headings.append(data.strip())
            self._in_heading = False


def test_every_figure_is_there_with_words_and_nothing_is_loaded() -> None:
    text = report_html({"schema": 1, "runs": [made_run("new")]})
    page = Page(text)
    assert [title for title in page.headings if title in FIGURES] == list(FIGURES)
    assert len(page.pictures) == len(FIGURES)
    for words, source in page.pictures:
        assert len(words) > 20
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        picture = base64.b64decode(data)
        assert ET.fromstring(picture).tag.endswith("svg")
        assert b"<image" not in picture
        assert not re.search(rb'(?:href|src)="(?!#)', picture)
    assert all(reference.startswith("data:") for reference in page.references)
    assert not re.search(r"@import|url\(|<script|<link", text)


def test_every_number_is_in_a_table() -> None:
    text = " ".join(Page(report_html({"schema": 1, "runs": [made_run("new")]})).text.split())
    for words in (
        "new 2.12 (2.00 to 2.25) 2.50 (2.25 to 2.75) -",
        "new 1.50 12.25 9.00 - 1.31",
        "new toy 450 922 K - 205",
        "2 25.0 25.0 25.0 0.25 0.25",
        "Calibration of new: sequential, 3,303 held-out rounds",
        "Target demo<1> on CPU (cpu)",
        "torch 2.13.0.",
        '"seed": 0',
    ):
        assert words in text


def test_what_was_not_measured_is_left_out() -> None:
    page = Page(report_html({"schema": 1, "runs": [bare("old"), bare("new")]}))
    assert not [title for title in page.headings if title.startswith(("Reliab", "Calib", "Thresh"))]
    assert len(page.pictures) == len(FIGURES) - 2 + 2
    both = Page(report_html({"schema": 1, "runs": [bare("old"), made_run("new")]}))
    assert "Threshold sweep" in both.headings


def test_the_same_data_give_the_same_bytes() -> None:
    found = {"schema": 1, "runs": [made_run("new")]}
    assert report_html(found) == report_html(found)


@pytest.mark.parametrize("width", [420, 1200])
def test_a_browser_shows_the_page_whole_and_without_an_error(width: int, tmp_path: Path) -> None:
    if BROWSER is None:
        pytest.skip("no browser (chromium) is installed")
    text = report_html({"schema": 1, "runs": [made_run("new"), bare("old")]})
    measure = (
        "<script>onload = () => { const all = [...document.images];"
        "document.title = [document.documentElement.scrollWidth, innerWidth,"
        "all.every(i => i.complete && i.naturalWidth > 0), all.length].join(' ') }</script>"
    )
    page = tmp_path / "page.html"
    page.write_text(text.replace("</body>", f"{measure}</body>"), encoding="utf-8")
    quiet = ("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking")
    ran = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            *(f"--{flag}" for flag in (*quiet, "disable-component-update", "disable-sync")),
            f"--user-data-dir={tmp_path / 'browser'}",
            f"--window-size={width},2000",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    [title] = re.findall(r"<title>(.*?)</title>", ran.stdout)
    needs, has, loaded, pictures = title.split()
    assert int(needs) <= int(has)
    assert (loaded, int(pictures)) == ("true", len(FIGURES) + 2)
    assert "CONSOLE" not in ran.stderr
