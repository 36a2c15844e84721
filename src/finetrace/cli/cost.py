"""`--dry-run`: what an audit would read, and about how long and how much memory it would take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from finetrace.core.amounts import duration

if TYPE_CHECKING:
    from finetrace.api.request import Request


def show_cost(request: Request, rules: tuple[str, ...] = ()) -> None:
    """What it would read and write, and what each rule needs."""
    from finetrace.api.audit import asked_for, with_bundled_nulls
    from finetrace.api.cost import estimate
    from finetrace.api.needed import needed
    from finetrace.api.request import check
    from finetrace.api.rules import parse_rule

    chosen = check(request, rules)
    prompts = asked_for(request, chosen)
    found = estimate(with_bundled_nulls(request), chosen, prompts)
    for name, tokens in found.slices.items():
        typer.echo(f"{name:>16}: {tokens:,} tokens")
    typer.echo(f"{'tokens':>16}: {found.tokens:,} ({found.padded:,} with padding), read {found.passes} times")
    for line in found.own:
        typer.echo(f"{'after that':>16}: {line}")
    if found.stored is not None:
        typer.echo(f"{'stored':>16}: {found.stored.said}")
    for line in found.answers:
        typer.echo(f"{'answers':>16}: {line}")
    typer.echo(
        f"{'time':>16}: about {duration(found.seconds)} on {found.device} (from a short matrix product; +-2x)"
    )
    typer.echo(
        f"{'memory':>16}: about {found.bytes / 2**30:.2f} GiB, of which weights {found.weights / 2**30:.2f} GiB"
    )
    for one in needed([parse_rule(rule) for rule in rules], [one.card for one in chosen], prompts):
        typer.echo(f"{'rule':>16}: {one.rule}: {one.said}")
    typer.echo("Nothing was run and nothing was written.")
