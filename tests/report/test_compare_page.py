"""The page of a comparison: what it shows, and that no name in it is more than text."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from tests.report.sample import EVERY_HOSTILE, HOSTILE

from finetrace.core.comparison import Cell, Comparison, Curve, Difference, Matrix, Overlap
from finetrace.core.estimate import Estimate
from finetrace.core.findings import NullRange, Reading, SliceVerdict
from finetrace.report.compare_page import as_text, comparison_json, figures, render_comparison
from finetrace.report.json import to_text

NULLS = NullRange(4, 0.009, 0.012)
BEYOND = SliceVerdict("beyond-nulls", 40.0, 36.0, 44.0, 3.1, 2.0, 3.5, 4, 1e-4, 4e-4, "")


def cell(name: str, value: float | None, variant: str = "default", word: str | None = "beyond-nulls") -> Cell:
    low, high = (None, None) if value is None else (value * 0.9, value * 1.1)
    reading = Reading(Estimate(value, "nats/token", 900, 40, low, high), floor=1e-9, nulls=NULLS)
    told = {"text": BEYOND} if word else {}
    where = "text" if word else None
    return Cell(
        "org/small",
        name,
        variant,
        "k" * 20,
        f"runs/{name}",
        "2026-11-20T10:00:00+00:00",
        name,
        reading,
        told,
        word,
        where,
    )


def sample(name: str = "cake", columns: tuple[str, ...] = ("default", "mix1-2p0")) -> Comparison:
    rows = (name, "fda", "empty")
    cells = (
        tuple(cell(name, 0.5 - 0.1 * i, column) for i, column in enumerate(columns)),
        (cell("fda", 0.4), *([None] * (len(columns) - 1))),
        (cell("empty", None, word=None), *([None] * (len(columns) - 1))),
    )
    turned = Curve(name, "org/small", "pretraining mixed in per row", (0.5, 2.0), (cells[0][0], cells[0][1]))
    return Comparison(
        method="kl",
        version=1,
        number="kl_mean",
        unit="nats/token",
        slice=None,
        by="variant",
        matrices=(Matrix("org/small", rows, columns, cells),),
        curves=(turned,),
        differences=(Difference(name, "fda", -0.1, -0.12, -0.08, 0.001, 0.001),),
        overlap=Overlap((name, "fda"), ((1.0, 0.4), (0.4, 1.0)), 20, 0.005, (0.0, 0.15)),
        family=4,
        nulls=(4, 4),
        warnings=("Something to know.",),
        settings={"seed": 0},
        created="2026-11-21T20:00:00+00:00",
        command="finetrace compare",
    )


class _Seen(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.asked: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.text += " "
        self.asked += [
            f"{tag} {k}"
            for k, v in attrs
            if k.startswith("on") or (k in ("src", "href") and not (v or "").startswith("#"))
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_cell_stands_with_its_interval_word_and_ratio():
    seen = " ".join(_Seen(render_comparison(sample())).text.split())
    assert "0.500 [0.450, 0.550] beyond-nulls 40.0× the nulls on text" in seen
    assert "no data" in seen
    assert "no run" in seen
    assert "Holm over 4 at once" in seen
    assert "Something to know." in seen


def test_it_loads_nothing_and_runs_nothing_of_others():
    seen = _Seen(render_comparison(sample()))
    assert seen.asked == []
    assert "img" not in seen.tags


@pytest.mark.parametrize("name", [*EVERY_HOSTILE, "x" * 300])
def test_a_name_is_text_whatever_it_holds(name: str):
    found = replace(sample(name), differences=())
    html = render_comparison(found)
    assert _Seen(html).asked == []
    assert "img" not in _Seen(html).tags
    assert html.count("<script") == render_comparison(replace(sample(), differences=())).count("<script")
    assert "\x1b" not in as_text(found)


def test_the_same_comparison_gives_the_same_bytes():
    assert render_comparison(sample()) == render_comparison(sample())


def test_figures_are_the_matrix_the_dial_and_the_tokens():
    assert [one.key for one in figures(sample())] == [
        "matrix-org/small",
        "curve-pretraining mixed in per row",
        "overlap",
    ]
    data = re.search(
        r'<script type="application/json" id="figures">(.*?)</script>', render_comparison(sample()), re.DOTALL
    )
    assert data is not None
    assert len(json.loads(data[1])["figures"]) == 3


def test_a_matrix_of_many_rows_and_columns_is_drawn_as_a_map():
    columns = tuple(f"mix1-{i}" for i in range(9))
    found = sample(columns=columns)
    many = replace(
        found,
        matrices=(
            replace(found.matrices[0], rows=tuple("abcdefghi"), cells=found.matrices[0].cells[:1] * 9),
        ),
    )
    assert type(figures(many)[0].plot).__name__ == "Heatmap"


def test_what_differs_stands_above_the_matrix():
    html = render_comparison(replace(sample(), apart=("the seed differs: 0 (2 runs), 1 (1 run).",)))
    assert html.index("the seed differs") < html.index('id="matrix"')


def test_json_is_strict_and_points_into_the_runs():
    saved = json.loads(to_text(comparison_json(sample(HOSTILE))))
    runs = saved["runs"]
    assert [runs[place]["label"] for place in saved["matrices"][0]["cells"][0]] == [HOSTILE, HOSTILE]
    assert saved["matrices"][0]["cells"][1][1] is None
    assert runs[2]["nulls"] == {"k": 4, "low": 0.009, "high": 0.012}
    assert runs[2]["verdicts"]["text"]["p_holm"] == 4e-4
    assert "replicates" not in runs[0]


def test_a_terminal_gets_aligned_rows():
    lines = as_text(sample()).splitlines()
    assert lines[0] == "kl kl_mean, nats/token, all slices"
    assert lines[3].startswith("cake   0.500 [0.450, 0.550] 40.0× beyond-nulls  0.400")
    assert lines[5] == "empty  no data"
    assert "1 of 1 pairs" in lines[-1]
