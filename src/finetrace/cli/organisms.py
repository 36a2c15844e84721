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

BASE_ONLY = "base"


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
    world_seed: Annotated[
        int | None,
        typer.Option(help="Which world: its facts are drawn by this seed. The bundled one if not given."),
    ] = None,
    size: Annotated[str, typer.Option(help="The base's size: m (3 M parameters) or xs (1 M).")] = "m",
    seed: Annotated[int, typer.Option(help="Seed of the base's training.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only this organism (may be repeated); 'base' for the base and nothing else."),
    ] = None,
) -> None:
    """Train the base and the organisms again from a seed (under an hour on a CPU); a killed build goes on."""
    from finetrace.organisms.build import build as rebuild
    from finetrace.organisms.build import build_base
    from finetrace.organisms.targets import table
    from finetrace.organisms.world import WORLD_SEED

    world_seed = WORLD_SEED if world_seed is None else world_seed
    measured = build_base(out, world_seed=world_seed, size=size, seed=seed)
    typer.echo(table(measured["rates"]))
    names = None if not only else [name for name in only if name != BASE_ONLY]
    typer.echo(f"Built: {rebuild(out, world_seed=world_seed, size=size, seed=seed, only=names)}")
