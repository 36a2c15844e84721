"""`finetrace report`: the report again, from what an audit saved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add(app: typer.Typer) -> None:
    app.command("report", epilog="Example: finetrace report runs/erosion")(report)


def report(
    folder: Annotated[Path, typer.Argument(help="An audit's --out folder.", show_default=False)],
) -> None:
    """Draw report.html, report.json and model-card.md again from an audit's findings; nothing is computed anew."""
    from finetrace.core.errors import BadInput
    from finetrace.report import load_findings, write_report

    saved = folder / "findings.json"
    if not saved.is_file():
        raise BadInput(f"{folder} holds no findings.json: name the --out folder of a finished audit.")
    typer.echo(f"Report: {write_report(load_findings(saved), folder)}")
