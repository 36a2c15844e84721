"""Every kind of figure becomes valid plotly data that says what the figure says."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import plotly.graph_objects as go
import pytest
from tests.report.sample import figures

from finetrace.core.page import Bars, Figure, Heatmap, Histogram, Line, Scatter, Series
from finetrace.drawing.plotly import PALETTE, THEMES, draw, plotly_js


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("kind", ["line", "bars", "scatter", "histogram", "heatmap"])
def test_each_kind_is_valid_plotly_and_strict_json(kind: str, theme: str):
    drawn = draw(figures()[kind], theme)
    json.dumps(drawn, allow_nan=False)
    assert go.Figure(drawn).to_dict()["layout"]["xaxis"]["title"]["text"] == figures()[kind].x_label


def _figure(plot: Any, **options: Any) -> Figure:
    return Figure("key", "title", plot, "x, units", "y, units", **options)


def test_a_gap_stays_a_gap_in_line_and_band():
    series = Series(
        "s",
        (1.0, 2.0, 3.0, 4.0, 5.0),
        (1.0, 2.0, None, 4.0, 5.0),
        (0.5, 1.5, None, 3.5, 4.5),
        (1.5, 2.5, None, 4.5, 5.5),
    )
    *bands, line = draw(_figure(Line((series,))))["data"]
    assert line["y"] == [1.0, 2.0, None, 4.0, 5.0]
    assert line["connectgaps"] is False
    assert [band["x"] for band in bands] == [[1.0, 2.0, 2.0, 1.0], [4.0, 5.0, 5.0, 4.0]]
    assert bands[0]["y"] == [1.5, 2.5, 1.5, 0.5]


def test_error_bars_are_distances_and_none_where_there_is_no_interval():
    bars = Bars((Series("s", ("a", "b"), (2.0, 3.0), (1.0, None), (4.0, None)),))
    error = draw(_figure(bars))["data"][0]["error_y"]
    assert (error["array"], error["arrayminus"]) == ([2.0, 0.0], [1.0, 0.0])


def test_no_data_is_not_drawn_as_zero():
    bars = Bars((Series("s", ("a", "b"), (None, math.nan)),))
    assert draw(_figure(bars))["data"][0]["y"] == [None, None]


def test_log_axes_drop_what_they_cannot_show_and_keep_bands_on_the_plot():
    series = Series("s", (0.0, 1.0, 10.0), (1e-3, 0.0, 1.0), (-1.0, 0.5, 0.5), (1.0, 1.0, 2.0))
    *bands, line = draw(_figure(Line((series,)), log_x=True, log_y=True))["data"]
    assert line["x"] == [None, 1.0, 10.0]
    assert line["y"] == [1e-3, None, 1.0]
    assert all(y > 0 for band in bands for y in band["y"])
    axis = draw(_figure(Line((series,)), log_y=True))["layout"]
    assert (axis["xaxis"]["type"], axis["yaxis"]["type"]) == ("linear", "log")


def test_labels_that_look_like_numbers_or_dates_stay_labels():
    drawn = draw(_figure(Bars((Series("s", ("2020", "1e3"), (1.0, 2.0)),))))
    assert drawn["layout"]["xaxis"]["type"] == "category"


def test_equal_labels_are_not_folded_into_one():
    heat = draw(_figure(Heatmap(("a", "a", "b"), ("r",), ((1.0, 2.0, 3.0),))))["data"][0]
    assert len(set(heat["x"])) == 3
    assert [x.strip("\u200b") for x in heat["x"]] == ["a", "a", "b"]


def test_values_of_both_signs_are_centred_on_zero():
    assert draw(_figure(Heatmap(("a",), ("b",), ((-1.0,),))))["data"][0]["zmid"] == 0
    assert "zmid" not in draw(_figure(Heatmap(("a",), ("b",), ((1.0,),))))["data"][0]


def test_histograms_keep_every_bin():
    one = draw(_figure(Histogram((0.0, 1.0, 3.0), (("s", (4.0, 2.0)),))))["data"][0]
    assert (one["x"], one["width"], one["y"]) == ([0.5, 2.0], [1.0, 2.0], [4.0, 2.0])
    two = draw(_figure(Histogram((0.0, 1.0, 3.0), (("s", (4.0, 2.0)), ("t", (1.0, 0.0))))))["data"]
    assert [t["y"] for t in two] == [[4.0, 2.0, 2.0], [1.0, 0.0, 0.0]]


def test_empty_ends_of_a_histogram_are_left_out():
    drawn = draw(_figure(Histogram(tuple(map(float, range(8))), (("s", (0, 0, 0, 4.0, 0, 0, 0)),))))["data"][
        0
    ]
    assert (drawn["x"], drawn["y"]) == ([2.5, 3.5, 4.5], [0.0, 4.0, 0.0])
    empty = draw(_figure(Histogram((0.0, 1.0, 2.0), (("s", (0.0, 0.0)),))))["data"][0]
    assert empty["y"] == [0.0, 0.0]


def test_a_histogram_from_zero_can_stand_on_a_log_axis():
    drawn = draw(_figure(Histogram((0.0, 1.0, 3.0), (("s", (4.0, 2.0)),)), log_x=True))["data"][0]
    assert drawn["x"][0] - drawn["width"][0] / 2 > 0


def test_text_from_models_makes_no_links_or_markup():
    evil = '<a href="https://evil.example">x</a>'
    series = Series(evil, (evil,), (1.0,))
    for plot in (Line((series,)), Bars((series,)), Scatter((series,)), Heatmap((evil,), (evil,), ((1.0,),))):
        drawn = draw(Figure("k", evil, plot, evil, evil))
        assert "<a" not in json.dumps(drawn)
    assert "\u202e" not in json.dumps(
        draw(_figure(Bars((Series("\u202e", ("\u202e",), (1.0,)),)))), ensure_ascii=False
    )


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("colour", "theme"), list(itertools.product(PALETTE, THEMES)))
def test_every_colour_can_be_seen_in_light_and_dark(colour: str, theme: str):
    assert _contrast(colour, THEMES[theme]["background"]) >= 3


@pytest.mark.parametrize("theme", THEMES)
def test_text_on_plots_can_be_read(theme: str):
    assert _contrast(THEMES[theme]["ink"], THEMES[theme]["background"]) >= 7


def test_the_library_can_stand_in_a_script_element():
    source = plotly_js()
    assert "plotly.js" in source[:200]
    assert "</script" not in source.lower()
    assert "\r" not in source
