"""Pages that load nothing: one HTML file with its pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from deepspec.report.figures import report_figures
from deepspec.report.plots import MIN_LOOKS
from deepspec.report.tables import comparison_tables, report_tables


def comparison_html(comparison: Mapping[str, Any], png: bytes) -> str:
    """The page for a comparison's JSON and its picture."""
    return _rendered(
        "comparison.html.jinja",
        found=comparison,
        tables=comparison_tables(comparison),
        picture=base64.b64encode(png).decode(),
        min_looks=MIN_LOOKS,
    )


def report_html(found: Mapping[str, Any]) -> str:
    """The page of runs, for what :func:`deepspec.evaluate.portrait.portraits_json` gives."""
    figures = [
        {"title": one.title, "caption": one.caption, "svg": base64.b64encode(one.svg).decode()}
        for one in report_figures(found)
    ]
    return _rendered("report.html.jinja", found=found, tables=report_tables(found), figures=figures)


def _rendered(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("deepspec", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)
