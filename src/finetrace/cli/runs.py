"""`finetrace list runs`: what a shelf holds, filtered; and all its numbers as Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from finetrace.core.card import Method, discover
from finetrace.core.shelf_find import Filter, moment, shelf_root
from finetrace.core.shelf_index import Entry, entries
from finetrace.drawing.text import NO_DATA, aligned, interval, number, one_line

COLUMNS = ("organism", "variant", "method", "contrast", "number", "base", "created", "folder")


def show(
    folder: Path, wanted: Filter, *, everything: bool, since: str | None, as_json: bool, export: Path | None
) -> None:
    """Prints the runs below `folder`, or writes their numbers to `export`."""
    root = shelf_root(folder)
    if everything and wanted.contrast == "pair":
        wanted = replace(wanted, contrast=None)
    wanted = replace(wanted, since=None if since is None else moment(since), aliases=aliases(wanted.base))
    found = entries(root, None if export else wanted.keeps)
    chosen, cards = [entry for entry in found if wanted.keeps(entry)], discover()[0]
    if export is not None:
        from finetrace.core.shelf_export import write_parquet

        rows = write_parquet(export, root, chosen)
        typer.echo(f"{export}: {rows:,} numbers of {len(chosen):,} runs.")
    elif as_json:
        typer.echo(json.dumps([_whole(entry, cards) for entry in chosen], indent=1, ensure_ascii=False))
    elif chosen:
        _table([_row(entry, cards) for entry in chosen], several_bases=len({one.base for one in chosen}) > 1)
    if export is None and not as_json:
        typer.echo(_told(root, found, chosen, wanted))


def aliases(base: str | None) -> Mapping[str, str]:
    """Names of the catalogue for bases -> their hub ids, where one is asked for by such a name."""
    if base is None or "/" in base:
        return {}
    from finetrace.config.catalogue import models

    return {one.name: one.model_id for one in models()}


def _told(root: Path, found: list[Entry], chosen: list[Entry], wanted: Filter) -> str:
    """What stands below the table: how many, and what was folded away."""
    if not found:
        return f"There are no runs in {root} yet."
    folded = 0
    if wanted.contrast == "pair":
        every = replace(wanted, contrast=None)
        folded = sum(every.keeps(entry) for entry in found) - len(chosen)
    rest = f"; {folded:,} of nulls, doses and the noise floor are folded (--all)" if folded else ""
    return f"{len(chosen):,} of {len(found):,} runs in {root}{rest}."


def headline(entry: Entry, cards: Mapping[str, Method]) -> str | None:
    """The number that a listing shows: the method's primary one; of one without, its first measure; else the first."""
    if not entry.numbers:
        return None
    card = cards.get(entry.method)
    keys = [] if card is None else [card.primary, *(measure.key for measure in card.measures)]
    return next((key for key in [*keys, *entry.numbers] if key in entry.numbers), None)


def _row(entry: Entry, cards: Mapping[str, Method]) -> dict[str, str]:
    key, value = headline(entry, cards), NO_DATA
    if key is not None and entry.numbers is not None:
        one = entry.numbers[key]
        value = f"{key} {number(one.value)} {one.unit if one.value is not None else ''} {interval(one.low, one.high)}"
    parts = (
        entry.tuned, entry.variant, entry.method, entry.contrast, " ".join(value.split()), entry.base,
        entry.created[:16].replace("T", " "), entry.folder,
    )  # fmt: skip
    return dict(zip(COLUMNS, parts, strict=True))


def _whole(entry: Entry, cards: Mapping[str, Method]) -> dict[str, Any]:
    figures = {
        key: {name: value for name, value in vars(one).items() if name != "replicates"}
        for key, one in (entry.numbers or {}).items()
    }
    return {
        "base": entry.base,
        "organism": entry.tuned,
        "variant": entry.variant,
        "method": entry.method,
        "version": entry.manifest.get("version"),
        "contrast": entry.contrast,
        "key": entry.key,
        "created": entry.created,
        "folder": entry.folder,
        "primary": headline(entry, cards),
        "numbers": figures,
        "protocol": entry.manifest.get("protocol"),
    }


def _table(rows: list[dict[str, str]], several_bases: bool) -> None:
    """Plain columns: a drawn table of thousands of rows takes seconds. Names are text, whatever they hold."""
    names = [name for name in COLUMNS if name != "base" or several_bases]
    if len({row["contrast"] for row in rows}) == 1:
        names.remove("contrast")
    typer.echo(aligned([names, *([one_line(row[name]) for name in names] for row in rows)]))
