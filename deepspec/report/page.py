"""The page of a comparison: one HTML file that loads nothing, with the picture inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from deepspec.report.plots import MIN_LOOKS
from deepspec.report.tables import comparison_tables


def comparison_html(comparison: Mapping[str, Any], png: bytes) -> str:
    """The page for a comparison's JSON and its picture."""
    environment = Environment(
        loader=PackageLoader("deepspec", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("comparison.html.jinja").render(
        found=comparison,
        tables=comparison_tables(comparison),
        picture=base64.b64encode(png).decode(),
        min_looks=MIN_LOOKS,
    )
