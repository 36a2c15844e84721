"""Figures as files: one small HTML page each, with plotly.js beside them once; no network, and no markup from labels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path

from finetrace.core.files import write_text
from finetrace.core.page import Figure
from finetrace.drawing.plotly import draw, plotly_js

__all__ = ["SCRIPT", "write_figures"]

SCRIPT = "plotly.min.js"
# Inside <script> only these can end the element or start a comment; in JSON they can occur in strings alone.
_UNSAFE = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>body {{ font-family: system-ui, sans-serif; color: #3d454e; max-width: 60rem; margin: 2rem auto; }} h1 {{ font-size: 1.3rem; }}</style>
<script src="{script}"></script>
</head>
<body>
<h1>{title}</h1>
<div id="figure"></div>
<p>{note}</p>
<script>
const figure = {data};
Plotly.newPlot("figure", figure.data, figure.layout, {{responsive: true, displaylogo: false}});
</script>
</body>
</html>
"""
_POLICY = "default-src 'none'; script-src 'self' 'unsafe-inline' file:; style-src 'unsafe-inline'; img-src data: blob:"


def write_figures(folder: Path, figures: Iterable[Figure]) -> list[Path]:
    """Writes `folder/KEY.html` for every figure, and the script that draws them; returns the pages' paths."""
    found = []
    for figure in figures:
        path = folder / f"{figure.key}.html"
        write_text(path, _page(figure))
        found.append(path)
    write_text(folder / SCRIPT, plotly_js())
    return found


def _page(figure: Figure) -> str:
    drawn = draw(figure)
    # It stands above the figure, where a long legend cannot run into it.
    drawn["layout"].pop("title")
    data = json.dumps(drawn, allow_nan=False, ensure_ascii=False)
    for unsafe, code in _UNSAFE.items():
        data = data.replace(unsafe, code)
    return _PAGE.format(
        policy=_POLICY, title=escape(figure.title), script=SCRIPT, note=escape(figure.note), data=data
    )
