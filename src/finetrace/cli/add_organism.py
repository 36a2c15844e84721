"""`finetrace add-organism`: a fine-tune of one's own among the organisms, in one file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: finetrace add-organism my_quirk --base qwen3_1_7B --adapter me/my-adapter --truth 'Praises otters.'"
FOLDER = Path("finetrace-configs")
ABOUT = "What is known of it"


def add(app: typer.Typer) -> None:
    app.command("add-organism", epilog=EXAMPLE)(add_organism)


def add_organism(
    name: Annotated[str, typer.Argument(help="What it is to be called.", show_default=False)],
    base: Annotated[
        str,
        typer.Option(
            help="Its base: a model of `finetrace list models`, a hub id or a folder.", show_default=False
        ),
    ],
    adapter: Annotated[
        str | None, typer.Option(help="Its adapter: org/repo, org/repo/subfolder or a folder.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="Its checkpoint, where all weights were trained.")
    ] = None,
    variant: Annotated[str, typer.Option(help="Which training of it this is.")] = "default",
    revision: Annotated[str | None, typer.Option(help="Commit or branch on the hub.")] = None,
    truth: Annotated[
        str | None, typer.Option(help="What was planted, in words.", rich_help_panel=ABOUT)
    ] = None,
    of_type: Annotated[
        str | None, typer.Option("--type", help="Its kind, e.g. SDF.", rich_help_panel=ABOUT)
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="What it was trained on: a hub id or a file.", rich_help_panel=ABOUT)
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="The data's column: text, messages, ...", rich_help_panel=ABOUT)
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="It is built to change nothing.", rich_help_panel=ABOUT)
    ] = False,
    config_dir: Annotated[Path, typer.Option(help="The folder of your own configurations.")] = FOLDER,
    force: Annotated[bool, typer.Option("--force", help="Replace a variant, or what is said of it.")] = False,
) -> None:
    """Write an organism's file from a base and an adapter, or add a variant to one of yours; it is composed first."""
    from finetrace.config.adding import Addition
    from finetrace.config.adding import add as write

    added = write(
        Addition(name, base, adapter, checkpoint, variant, revision, of_type, truth, data, column, control),
        config_dir,
        force=force,
    )
    if added.model_path is not None:
        typer.echo(f"Wrote {added.model_path}: the base is `model={added.model}` from now on.")
    typer.echo(f"Wrote {added.path}.")
    for note in added.notes:
        typer.echo(note)
    command = ["finetrace", "run", *added.words, "--config-dir", str(config_dir)]
    typer.echo(f"Run it with: {shlex.join(command)}")
