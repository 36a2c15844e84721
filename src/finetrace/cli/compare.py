"""`finetrace compare`: one number of one method over many organisms, variants, bases or checkpoints."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: finetrace compare organism=cake_bake --method kl --by dial --in finetrace-runs"


def add(app: typer.Typer) -> None:
    app.command("compare", epilog=EXAMPLE)(compare)


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run's folder, a folder of results, the beginning of a run's key; or filters: organism=cake_bake, "
            "variant='mix*', model=qwen3_1_7B, seed=0. All in --in if none is given.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--in", help="A folder of results.", show_default="finetrace-audit or finetrace-runs"),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Which method, where the runs are of several.")] = None,
    number: Annotated[
        str | None, typer.Option(help="Which of its numbers.", show_default="its primary one")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--slice", help="On which slice.", show_default="all together")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Columns: variant, organism, model, or dial (mix ratio, documents, steps).")
    ] = "variant",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Put runs of different settings together; they are told apart.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the page and the tables.")] = Path(
        "finetrace-compare"
    ),
) -> None:
    """Put one number of many runs side by side: a matrix with intervals, the ratio to the nulls on the shelf and the change
    verdict, curves along mix ratios, documents or steps, and differences between runs that read the same texts."""
    from finetrace.api.compare import compare as compared
    from finetrace.api.compare import write
    from finetrace.cli.listing import AUDITS, RUNS
    from finetrace.report.compare_page import as_text

    usual = RUNS if RUNS.is_dir() and not AUDITS.is_dir() else AUDITS
    found = compared(
        runs or (),
        folder=folder or usual,
        method=method,
        number=number,
        slice=where,
        by=by,
        anyway=anyway,
        command=shlex.join(["finetrace", *sys.argv[1:]]),
    )
    page = write(found, out)
    typer.echo(as_text(found))
    typer.echo(f"Page: {page}; tables: {out / 'compare.json'}, {out / 'compare.parquet'}")
