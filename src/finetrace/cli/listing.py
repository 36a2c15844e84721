"""`finetrace list`: what there is."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from finetrace.core.card import discover


class Kind(enum.StrEnum):
    methods = "methods"
    organisms = "organisms"
    runs = "runs"


def add(app: typer.Typer) -> None:
    app.command("list", epilog="Example: finetrace list methods --json")(listing)


def listing(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    folder: Annotated[Path, typer.Option("--in", help="For runs: an audit's --out folder.")] = Path(
        "finetrace-audit"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List methods, bundled organisms, or the runs on a shelf."""
    rows = {Kind.methods: _methods, Kind.organisms: _organisms, Kind.runs: lambda: _runs(folder)}[kind]()
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        _show(rows)
    else:
        typer.echo(f"There are no {kind} yet.")


def _methods() -> list[dict[str, Any]]:
    found, broken = discover()
    rows = [
        {"name": m.name, "version": m.version, "primary": m.primary, "summary": m.summary}
        for m in found.values()
    ]
    return rows + [{"name": b.name, "version": "broken", "primary": "", "summary": b.error} for b in broken]


def _organisms() -> list[dict[str, Any]]:
    from finetrace.organisms import bundled

    return [{"name": f"tinyworld/{name}", "what": bundled.describe(name)} for name in bundled.names()]


def _runs(folder: Path) -> list[dict[str, Any]]:
    from finetrace.core.shelf import Shelf

    keys = ("method", "contrast", "created", "folder")
    return [{key: run.get(key, "") for key in keys} for run in Shelf(folder / "runs").runs()]


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console().print(table)
