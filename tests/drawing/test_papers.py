"""Figures as files: pages that need no network, and labels that never become markup."""

from __future__ import annotations

import json
import re

from finetrace.core.page import Figure, Heatmap, Line, Series
from finetrace.drawing.papers import SCRIPT, write_figures

EVIL = "</script><script>alert(1)</script>"


def test_every_figure_has_a_page_and_the_script_lies_beside_them(tmp_path):
    line = Figure("one", "One & all", Line((Series("a", (1.0, 2.0), (0.5, None)),)), note="Read <b>this</b>.")
    grid = Figure("two", EVIL, Heatmap(("q",), ("0",), ((None,),)), note=EVIL)
    paths = write_figures(tmp_path, [line, grid])
    assert [path.name for path in paths] == ["one.html", "two.html"]
    assert (tmp_path / SCRIPT).stat().st_size > 1_000_000
    for path in paths:
        page = path.read_text()
        assert not re.search(r"https?://", page)
        assert page.count("<script") == 2
        assert EVIL not in page
        data = re.search(r"const figure = (.*);\n", page)
        assert data is not None
        assert {"data", "layout"} <= set(json.loads(data[1]))
