"""Findings to one self-contained HTML file: no network, and no text from a model or data set ever becomes markup."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from finetrace.core.files import write_text
from finetrace.core.findings import Findings
from finetrace.drawing.plotly import THEMES, draw, plotly_js
from finetrace.report import headline, strip, view, words
from finetrace.report.frame import asset, environment, policy, script_json, slug, untitled
from finetrace.report.opening import opening
from finetrace.report.redact import redact

__all__ = ["notebook_html", "render_html", "write_html"]


def write_html(findings: Findings, path: Path) -> Path:
    """Writes the report whole or not at all, and returns its path. The same findings give the same bytes."""
    write_text(path, render_html(findings))
    return path


def render_html(findings: Findings) -> str:
    """The report as a string. plotly.js (4.8 MB) is in it, once, only if a page has a figure."""
    shown = redact(findings)
    pages = {name: view.groups(finding) for name, finding in shown.findings.items()}
    figures = {
        slug(drawn.id): untitled(draw(drawn.figure))
        for groups in pages.values()
        for group in groups
        if group.kind == "figure"
        for drawn in group.items
    }
    scripts = [asset("report.js")]
    if figures:
        scripts.insert(0, plotly_js())
    strips = [strip.strip(finding) for finding in shown.findings.values()]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            f=shown,
            base=words.model_name(shown.pair.get("base")),
            tuned=words.model_name(shown.pair.get("tuned")),
            headline=headline,
            opening=opening(shown),
            dosed=headline.any_dosed(shown),
            strips=[s for s in strips if s is not None],
            pages=pages,
            css=Markup(asset("report.css")),
            policy=Markup(policy(scripts)),
            scripts=[Markup(source) for source in scripts],
            figures=Markup(script_json({"figures": figures, "themes": THEMES})) if figures else None,
            words=words,
            view=view,
        )
        + "\n"
    )


def notebook_html(findings: Findings) -> str:
    """A fragment for a notebook's output: the words, what was not measured, the headline table. No script, no style sheet."""
    shown = redact(findings)
    template = environment().get_template("notebook.html.jinja")
    tuned, base = (words.model_name(shown.pair.get(side)) for side in ("tuned", "base"))
    parts = {"headline": headline, "words": words, "opening": opening(shown)}
    return template.render(f=shown, tuned=tuned, base=base, **parts) + "\n"
