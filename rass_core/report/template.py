"""Fills the page's template: everything in one file, what is untrusted escaped."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from rass_core.report.words import visible


def sha256(script: str) -> str:
    """Return the source hash by which the page's policy allows one inline script and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def fill_template(**values: Any) -> str:
    """Fill the template; figures travel as JSON in which no character can end the script element."""
    figures: list[str] = []

    def add_figure(figure: go.Figure) -> int:
        figures.append(figure.to_json())
        return len(figures) - 1

    def figures_json() -> Markup:
        # plotly escapes these by itself today; the page's safety must not depend on that.
        unsafe: dict[str, str | int | None] = {
            "<": "\\u003c",
            ">": "\\u003e",
            "&": "\\u0026",
            "\u2028": "\\u2028",
            "\u2029": "\\u2029",
        }
        return Markup(f"[{','.join(figures)}]".translate(str.maketrans(unsafe)))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    folder = Path(__file__).parent
    return environment.get_template("page.html.j2").render(
        values,
        add_figure=add_figure,
        figures_json=figures_json,
        sha256=sha256,
        library=Markup(get_plotlyjs()),
        code=Markup((folder / "page.js").read_text(encoding="utf-8")),
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
    )
