"""`--dry-run`: what an audit would read, and about how long and how much memory it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from finetrace.api.request import Request


def show_cost(request: Request) -> None:
    from finetrace.api.audit import with_bundled_nulls
    from finetrace.api.cost import estimate
    from finetrace.api.request import check

    found = estimate(with_bundled_nulls(request), check(request))
    for name, tokens in found.slices.items():
        typer.echo(f"{name:>16}: {tokens:,} tokens")
    typer.echo(f"{'tokens':>16}: {found.tokens:,} ({found.padded:,} with padding), read {found.passes} times")
    for line in found.own:
        typer.echo(f"{'after that':>16}: {line}")
    typer.echo(
        f"{'time':>16}: about {_duration(found.seconds)} on {found.device} (from a short matrix product; +-2x)"
    )
    typer.echo(
        f"{'memory':>16}: about {found.bytes / 2**30:.2f} GiB, of which weights {found.weights / 2**30:.2f} GiB"
    )
    typer.echo("Nothing was run and nothing was written.")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
