"""Page figures to plotly's own plain data: dictionaries of traces and layout, drawn by plotly.js or plotly.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from finetrace.core.page import Bars, Figure, Heatmap, Histogram, Line, Scatter, Series
from finetrace.drawing.text import one_line, shorten

__all__ = ["PALETTE", "THEMES", "draw", "plotly_js"]

# Okabe and Ito's colour-blind-safe hues, moved until each has 3:1 against both backgrounds below (a test holds that).
PALETTE = ("#0077bb", "#d55e00", "#058a66", "#b8619b", "#a07800", "#7a74c9", "#7a7f87")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
_PATTERNS = ("", "/", "x", "\\", ".", "+", "-")
# Cividis: even in lightness, the same to colour-blind readers. The second one is for values of both signs.
_SEQUENTIAL = ((0.0, "#00224e"), (0.25, "#414d6b"), (0.5, "#7c7b78"), (0.75, "#bcae6c"), (1.0, "#fee838"))
_DIVERGING = ((0.0, "#0a5b93"), (0.25, "#6aa6cf"), (0.5, "#e9e6e1"), (0.75, "#e39a5b"), (1.0, "#a44400"))
_LABEL_WIDTH = 32

THEMES: dict[str, dict[str, str]] = {
    "light": {"background": "#ffffff", "ink": "#3d454e", "grid": "#e4e7eb", "axis": "#a5acb5"},
    "dark": {"background": "#14171b", "ink": "#c3c9d1", "grid": "#2a2f36", "axis": "#5c646e"},
}


def draw(figure: Figure, theme: str = "light") -> dict[str, Any]:
    """`{"data": [...], "layout": {...}}` for plotly, JSON-ready: no NaN, and None where a line has a gap.

    theme: a key of THEMES; the layout and the error bars' colour depend on it. On a log axis, figures that are not positive are gaps, and a
    lower bound that is not positive is drawn at the smallest positive figure of the plot. Text from models cannot form
    links or markup: plotly reads a little HTML in its labels.
    """
    plot, ink = figure.plot, THEMES[theme]["ink"]
    floor_y = _smallest_positive(plot) if figure.log_y else None
    if isinstance(plot, Line):
        data = _lines(plot.series, figure.log_x, floor_y)
    elif isinstance(plot, Scatter):
        data = _scatters(plot.series, figure.log_x, floor_y)
    elif isinstance(plot, Bars):
        data = _bars(plot.series, floor_y)
    elif isinstance(plot, Histogram):
        data = _histogram(plot, figure.log_x, floor_y)
    else:
        data = _heatmap(plot, figure.y_label)
    for trace in data:
        if "error_y" in trace:
            trace["error_y"]["color"] = ink
    return {"data": data, "layout": _layout(figure, theme, many=len(_names(plot)) > 1)}


def plotly_js() -> str:
    """The source of plotly.js that comes with plotly: version and licence in its first lines, newlines as LF."""
    import plotly

    # The package has the full bundle only, so there is no smaller one to take.
    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return source.read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")


def _escape(text: str) -> str:
    """Text that plotly shows as it is: its labels understand tags, and entities after that."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _label(text: str) -> str:
    return _escape(shorten(one_line(text), _LABEL_WIDTH))


def _unique(labels: Sequence[str]) -> list[str]:
    """Labels as category names; a repeated one gets zero-width marks, for plotly folds equal names into one."""
    seen: dict[str, int] = {}
    names = []
    for label in map(_label, labels):
        names.append(label + "\u200b" * seen.get(label, 0))
        seen[label] = seen.get(label, 0) + 1
    return names


def _number(value: float | None, *, positive: bool = False) -> float | None:
    if value is None or not math.isfinite(value) or (positive and value <= 0):
        return None
    return float(value)


def _is_text(x: Sequence[float | str]) -> bool:
    return any(isinstance(v, str) for v in x)


def _x(series: Series, log: bool = False) -> list[Any]:
    if _is_text(series.x):
        return _unique([str(v) for v in series.x])
    return [_number(v, positive=log) for v in series.x if not isinstance(v, str)]


def _names(plot: Line | Bars | Scatter | Histogram | Heatmap) -> list[str]:
    if isinstance(plot, Heatmap):
        return []
    if isinstance(plot, Histogram):
        return [name for name, _ in plot.counts]
    return [s.name for s in plot.series]


def _smallest_positive(plot: Line | Bars | Scatter | Histogram | Heatmap) -> float:
    if isinstance(plot, Heatmap):
        values: list[float | None] = []
    elif isinstance(plot, Histogram):
        values = [c for _, counts in plot.counts for c in counts]
    else:
        values = [v for s in plot.series for run in (s.y, s.low, s.high) if run for v in run]
    return min((v for v in values if v is not None and math.isfinite(v) and v > 0), default=1.0)


def _clamp(value: float | None, floor: float | None) -> float | None:
    number = _number(value)
    return number if number is None or floor is None else max(number, floor)


def _error_bars(series: Series, floor: float | None) -> dict[str, Any] | None:
    """Distances from y to its bounds; 0 where either is missing, which plotly draws as no bar."""
    if series.low is None or series.high is None:
        return None
    up, down = [], []
    for y, low, high in zip(series.y, series.low, series.high, strict=True):
        bounds = (_number(y), _clamp(low, floor), _number(high))
        up.append(0.0 if bounds[0] is None or bounds[2] is None else max(bounds[2] - bounds[0], 0.0))
        down.append(0.0 if bounds[0] is None or bounds[1] is None else max(bounds[0] - bounds[1], 0.0))
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.4, "width": 4}


def _band(series: Series, x: list[Any], colour: str, floor: float | None) -> list[dict[str, Any]]:
    """The area between low and high: one polygon for every unbroken run, so that it never bridges a gap."""
    if series.low is None or series.high is None:
        return []
    lows, highs = [_clamp(v, floor) for v in series.low], [_number(v) for v in series.high]
    runs: list[list[tuple[Any, float, float]]] = [[]]
    for place, low, high in zip(x, lows, highs, strict=True):
        if place is None or low is None or high is None:
            runs.append([])
        else:
            runs[-1].append((place, low, high))
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return [
        {
            "type": "scatter",
            "x": [p for p, _, _ in run] + [p for p, _, _ in reversed(run)],
            "y": [high for _, _, high in run] + [low for _, low, _ in reversed(run)],
            "fill": "toself",
            "fillcolor": f"rgba({red},{green},{blue},0.18)",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": _label(series.name),
        }
        for run in runs
        if run
    ]


def _lines(runs: Sequence[Series], log_x: bool, floor: float | None) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = []
    for i, series in enumerate(runs):
        colour, x = PALETTE[i % len(PALETTE)], _x(series, log_x)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers" if len(series.x) <= 60 else "lines",
            "name": _label(series.name),
            "legendgroup": _label(series.name),
            "x": x,
            "y": [_number(v, positive=floor is not None) for v in series.y],
            "connectgaps": False,
            "line": {"color": colour, "width": 2, "dash": _DASHES[i % len(_DASHES)]},
            "marker": {"color": colour, "size": 6, "symbol": _SYMBOLS[i % len(_SYMBOLS)]},
        }
        if _is_text(series.x):
            trace["error_y"] = _error_bars(series, floor)
        else:
            data += _band(series, x, colour, floor)
        data.append({key: value for key, value in trace.items() if value is not None})
    return data


def _scatters(runs: Sequence[Series], log_x: bool, floor: float | None) -> list[dict[str, Any]]:
    data = []
    for i, series in enumerate(runs):
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": _label(series.name),
            "x": _x(series, log_x),
            "y": [_number(v, positive=floor is not None) for v in series.y],
            "error_y": _error_bars(series, floor),
            "marker": {
                "color": PALETTE[i % len(PALETTE)],
                "size": 8,
                "symbol": _SYMBOLS[i % len(_SYMBOLS)],
                "opacity": 0.85,
            },
        }
        data.append({key: value for key, value in trace.items() if value is not None})
    return data


def _bars(runs: Sequence[Series], floor: float | None) -> list[dict[str, Any]]:
    data = []
    for i, series in enumerate(runs):
        trace = {
            "type": "bar",
            "name": _label(series.name),
            "x": _x(series),
            "y": [_number(v, positive=floor is not None) for v in series.y],
            "error_y": _error_bars(series, floor),
            "marker": _fill(i, len(runs)),
        }
        data.append({key: value for key, value in trace.items() if value is not None})
    return data


def _fill(i: int, of: int) -> dict[str, Any]:
    """A bar's colour, with a pattern where there are several: colour is never the only sign."""
    fill: dict[str, Any] = {"color": PALETTE[i % len(PALETTE)], "line": {"width": 0}}
    if of > 1:
        fill["pattern"] = {"shape": _PATTERNS[i % len(_PATTERNS)], "size": 6, "solidity": 0.25}
    return fill


def _histogram(plot: Histogram, log_x: bool, floor: float | None) -> list[dict[str, Any]]:
    """Bars for one histogram; outlines for several, which as bars would hide one another.

    Of empty bins at either end only the innermost is drawn.
    """
    first, last = _filled(plot)
    edges = [float(e) for e in plot.edges[first : last + 1]]
    if log_x and len(edges) > 1 and edges[0] <= 0:
        # The first bin reaches to zero, which a log axis cannot show: it is drawn down to half its upper edge.
        edges[0] = edges[1] / 2
    data = []
    for i, (name, counts) in enumerate(plot.counts):
        y = [_number(c, positive=floor is not None) for c in counts[first:last]]
        trace: dict[str, Any] = {"name": _label(name)}
        if len(plot.counts) == 1:
            trace |= {
                "type": "bar",
                "x": [(a + b) / 2 for a, b in pairwise(edges)],
                "y": y,
                "width": [b - a for a, b in pairwise(edges)],
                "marker": _fill(0, 1),
            }
        else:
            line = {
                "color": PALETTE[i % len(PALETTE)],
                "dash": _DASHES[i % len(_DASHES)],
                "shape": "hv",
                "width": 2,
            }
            # A step needs its last height twice: once at each edge of the last bin.
            trace |= {"type": "scatter", "mode": "lines", "x": edges, "y": y + y[-1:], "line": line}
        data.append(trace)
    return data


def _filled(plot: Histogram) -> tuple[int, int]:
    """The bins [first, last) that have anything in any of the counts, and one empty one on each side."""
    bins = len(plot.edges) - 1
    full = [i for i in range(bins) if any(counts[i] for _, counts in plot.counts)]
    return (max(full[0] - 1, 0), min(full[-1] + 2, bins)) if full else (0, max(bins, 0))


def _heatmap(plot: Heatmap, unit: str) -> list[dict[str, Any]]:
    values = [[_number(v) for v in row] for row in plot.values]
    signed = any(v < 0 for row in values for v in row if v is not None)
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": _unique(plot.x),
        "y": _unique(plot.y),
        "z": values,
        "colorscale": [list(stop) for stop in (_DIVERGING if signed else _SEQUENTIAL)],
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"thickness": 12, "outlinewidth": 0},
    }
    if signed:
        trace["zmid"] = 0
    return [trace]


def _axis(label: str, log: bool, text: bool, colours: dict[str, str]) -> dict[str, Any]:
    axis: dict[str, Any] = {
        "title": {"text": _wrapped(label), "font": {"size": 13}},
        "gridcolor": colours["grid"],
        "linecolor": colours["axis"],
        "zerolinecolor": colours["axis"],
        "automargin": True,
    }
    if text:
        axis["type"] = "category"
    elif log:
        axis |= {"type": "log", "dtick": 1, "exponentformat": "power"}
    else:
        axis["type"] = "linear"
    return axis


def _wrapped(label: str) -> str:
    """A long axis label on as many lines as it needs: it carries the unit, so it is not cut."""
    lines = [""]
    for word in one_line(label).split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= 48:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "<br>".join(_escape(line) for line in lines)


def _layout(figure: Figure, theme: str, *, many: bool) -> dict[str, Any]:
    colours, plot = THEMES[theme], figure.plot
    text_x = isinstance(plot, Heatmap) or (
        not isinstance(plot, Histogram) and any(_is_text(s.x) for s in plot.series)
    )
    layout: dict[str, Any] = {
        "title": {"text": _wrapped(figure.title)},
        "height": 340,
        "margin": {"l": 56, "r": 16, "t": 48, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": colours["ink"]},
        "xaxis": _axis(figure.x_label, figure.log_x, text_x, colours),
        "yaxis": _axis(figure.y_label, figure.log_y, isinstance(plot, Heatmap), colours),
        "showlegend": many,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": colours["axis"], "activecolor": colours["ink"]},
    }
    if isinstance(plot, Heatmap):
        layout["yaxis"]["autorange"] = "reversed"
        layout["height"] = max(220, min(900, 90 + 24 * len(plot.y)))
    if isinstance(plot, Histogram):
        layout |= {"barmode": "overlay", "bargap": 0}
    if isinstance(plot, Bars):
        layout |= {"barmode": "group", "bargap": 0.25}
    return layout
