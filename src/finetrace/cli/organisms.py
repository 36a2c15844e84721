"""`finetrace organisms`: the bundled tiny world, rebuilt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="The bundled tiny world: a small chat model and fine-tunes of it whose change is known.",
    epilog="Example: finetrace organisms build --out tinyworld",
    no_args_is_help=True,
)


def add(parent: typer.Typer) -> None:
    parent.add_typer(app, name="organisms")


@app.callback()
def _group() -> None:
    """Keeps `build` a verb of its own while it is the only one."""


@app.command("build", epilog="Example: finetrace organisms build --out tinyworld --only null_1")
def build(
    out: Annotated[Path, typer.Option(help="Folder for the base, the adapters and their truth.")] = Path(
        "tinyworld"
    ),
    seed: Annotated[int, typer.Option(help="The world's seed; the bundled one is the default.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these organisms, on the base in --out.")
    ] = None,
) -> None:
    """Train the base and the organisms again from a seed (tens of minutes on a CPU); a killed build goes on."""
    from finetrace.organisms.build import build as rebuild

    typer.echo(f"Built: {rebuild(out, seed=seed, only=only)}")
