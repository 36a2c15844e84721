"""`finetrace clean`: shows what it would remove, and removes it when told to."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetrace.core.errors import BadInput

if TYPE_CHECKING:
    from finetrace.core.shelf_clean import Removable
    from finetrace.core.shelf_index import Entry

EXAMPLE = "Example: finetrace clean --in finetrace-runs --scratch"
_SHOWN = 40
_SHORTEST_KEY = 6


def add(app: typer.Typer) -> None:
    app.command("clean", epilog=EXAMPLE)(clean)


def clean(
    folder: Annotated[
        Path | None,
        typer.Option("--in", help="A folder of results.", show_default="finetrace-audit or finetrace-runs"),
    ] = None,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Journals of unfinished runs, and half-written runs.")
    ] = False,
    answers: Annotated[
        bool, typer.Option("--answers", help="Answers and doses kept beside the runs.")
    ] = False,
    run: Annotated[
        list[str] | None, typer.Option(help="This run: its folder, or the beginning of its key.")
    ] = None,
    older_than: Annotated[int | None, typer.Option(help="Runs made more than so many days ago.")] = None,
    method: Annotated[str | None, typer.Option(help="Runs of this method.")] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Runs of another version of their method than this one.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also journals that were touched within the hour.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what would go.")] = False,
) -> None:
    """Show what can be removed from a folder of results and how large it is; remove it with --yes. Only runs, journals and
    kept answers are ever removed, only inside the folder; reports stay."""
    from finetrace.cli.listing import AUDITS, RUNS
    from finetrace.core import shelf_clean
    from finetrace.core.shelf_find import shelf_root

    usual = RUNS if RUNS.is_dir() and not AUDITS.is_dir() else AUDITS
    root = shelf_root(folder or usual)
    if not root.is_dir():
        raise BadInput(f"There is no folder of results at {root}: name one with --in.")
    of_runs = bool(run or method or stale or older_than is not None)
    found: list[Removable] = []
    if of_runs:
        wanted = _wanted(root, run or (), method, older_than, stale)
        found += shelf_clean.runs(root, wanted)
    found += shelf_clean.unfinished(root) if scratch else []
    found += shelf_clean.kept(root) if answers else []
    if not (of_runs or scratch or answers):
        _overview(root)
        return
    linked = [one for one in found if one.elsewhere]
    busy = [one for one in found if one.running and not force and not one.elsewhere]
    found = [one for one in found if one not in busy and not one.elsewhere]
    _list(found)
    for one in linked:
        typer.echo(f"{one.path} is reached through a link that leads out of {root}: it is left.")
    if busy:
        typer.echo(
            f"{len(busy)} touched within the hour are left, as they may be of a run that goes on (--force)."
        )
    if found and _agreed(yes):
        for line in shelf_clean.remove(root, found):
            typer.echo(f"Left: {line}")
        typer.echo(f"Removed {len(found):,} ({size(sum(one.size for one in found))}).")


def _wanted(root: Path, named: Sequence[str], method: str | None, older_than: int | None, stale: bool):
    """Whether a run is to go: it fits everything that was said."""
    from finetrace.core.card import discover
    from finetrace.core.shelf_find import moment

    cards = discover()[0]
    chosen = _named(root, named) if named else None
    limit = None if older_than is None else datetime.now(UTC) - timedelta(days=older_than)

    def wanted(entry: Entry) -> bool:
        if chosen is not None and entry.folder not in chosen:
            return False
        if method is not None and entry.method != method:
            return False
        if limit is not None and (not entry.created or moment(entry.created) >= limit):
            return False
        card = cards.get(entry.method)
        return not stale or (card is not None and entry.manifest.get("version") != card.version)

    return wanted


def _named(root: Path, named: Sequence[str]) -> set[str]:
    """Folders, relative to the shelf, of the runs that were named; each name is of one run, or an error."""
    from finetrace.core.shelf_index import entries

    known, found = entries(root), set()
    for name in named:
        path = Path(name)
        places = {path, root / path}
        hits = [one.folder for one in known if root / one.folder in places or _same(root / one.folder, path)]
        if not hits and len(name) >= _SHORTEST_KEY:
            hits = [one.folder for one in known if one.key.startswith(name)]
        if len(hits) != 1:
            many = (
                f"{len(hits)} runs in {root} have keys that begin so"
                if hits
                else f"No whole run in {root} is that"
            )
            raise BadInput(
                f"--run {name}: {many}. Name a run's folder, or {_SHORTEST_KEY} characters of its key or more: finetrace list runs --all."
            )
        found.update(hits)
    return found


def _same(one: Path, other: Path) -> bool:
    return other.is_absolute() and one.resolve() == other.resolve()


def _overview(root: Path) -> None:
    """How much there is of each kind, and how to choose."""
    from finetrace.core import shelf_clean

    kinds = (
        ("whole runs", shelf_clean.runs(root, lambda entry: True), "--run, --older-than, --method, --stale"),
        ("unfinished", shelf_clean.unfinished(root), "--scratch"),
        ("answers and doses", shelf_clean.kept(root), "--answers"),
    )
    for name, found, options in kinds:
        typer.echo(f"{name:<18} {len(found):>7,}  {size(sum(one.size for one in found)):>9}  {options}")
    typer.echo(f"Nothing is removed from {root} until you say what, and --yes.")


def _list(found: Sequence[Removable]) -> None:
    if not found:
        typer.echo("There is nothing to remove.")
        return
    for one in found[:_SHOWN]:
        typer.echo(f"{size(one.size):>9}  {one.kind:<7}  {one.what}  {one.path}")
    if len(found) > _SHOWN:
        typer.echo(f"{'':>9}  ... and {len(found) - _SHOWN:,} more")
    counts = ", ".join(f"{n:,} {kind}" for kind, n in Counter(one.kind for one in found).items())
    typer.echo(f"{size(sum(one.size for one in found)):>9}  in all: {counts}")


def _agreed(yes: bool) -> bool:
    if yes:
        return True
    if sys.stdin.isatty():
        return typer.prompt("Type yes to remove them", default="no", show_default=False).strip() == "yes"
    typer.echo("Nothing was removed: add --yes.")
    return False


def size(count: int) -> str:
    """Bytes as people read them.

    >>> size(0), size(1536), size(5_000_000_000)
    ('0 B', '1.5 KiB', '4.7 GiB')
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
