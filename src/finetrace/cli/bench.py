"""`finetrace bench`: every method on every organism of a world with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from finetrace.api.defaults import METHODS


def add(app: typer.Typer) -> None:
    app.command("bench", epilog="Example: finetrace bench --out bench")(bench)


def bench(
    out: Annotated[Path, typer.Option(help="Folder for bench.json, bench.md and the results.")] = Path(
        "finetrace-bench"
    ),
    world: Annotated[
        Path | None,
        typer.Option(help="A world made by `finetrace organisms build`.", show_default="the bundled one"),
    ] = None,
    methods: Annotated[str, typer.Option(help="Comma-separated; see `finetrace list methods`.")] = ",".join(
        METHODS
    ),
    only: Annotated[
        list[str] | None, typer.Option(help="Only these organisms; every null is read all the same.")
    ] = None,
    per_slice: Annotated[int, typer.Option(help="Texts a slice.", min=20)] = 80,
    seed: Annotated[int, typer.Option(help="Of the texts and the bootstrap.")] = 0,
) -> None:
    """Score the methods where the truth is known: what was planted, and what harmless fine-tunes look like.

    One pass reads every organism and every null; a few minutes on a CPU. Nulls are held against one another, each left
    out in turn, which gives the false-positive rate with its bound.
    """
    from rich.console import Console
    from rich.table import Table as Drawn

    from finetrace.api.bench.run import bench as measure
    from finetrace.api.bench.tables import NOTE, as_json, as_markdown, tables
    from finetrace.api.bench.zoo import open_zoo
    from finetrace.cli.audit import one_thread
    from finetrace.cli.progress import Bars
    from finetrace.core.files import write_json, write_text

    one_thread()
    names = tuple(name.strip() for name in methods.split(",") if name.strip())
    found = measure(
        open_zoo(world).picked(only), names, out=out, per_slice=per_slice, seed=seed, watch=Bars()
    )
    write_text(out / "bench.md", as_markdown(found))
    write_json(out / "bench.json", as_json(found))
    console = Console()
    for table in tables(found):
        drawn = Drawn(
            title=table.title, caption=table.note or None, title_justify="left", caption_justify="left"
        )
        for column in table.columns:
            drawn.add_column(column, overflow="fold")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    console.print(NOTE, markup=False)
    typer.echo(f"Written: {out / 'bench.md'}, {out / 'bench.json'}")
