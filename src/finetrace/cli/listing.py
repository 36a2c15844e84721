"""`finetrace list`: what there is."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from finetrace.cli import catalogue
from finetrace.core.card import discover
from finetrace.core.errors import BadInput

FILTERS, OF_RUNS = "Which organisms or models", "Which runs"
AUDITS, RUNS = Path("finetrace-audit"), Path("finetrace-runs")
# Characters of a line where no screen says how many; on a narrow screen some columns of organisms are left out.
WIDE, WIDEST, ROOMY, LEFT_OUT = 160, 400, 130, ("type", "models")


class Kind(enum.StrEnum):
    methods = "methods"
    organisms = "organisms"
    models = "models"
    recipes = "recipes"
    settings = "settings"
    rules = "rules"
    benchmarks = "benchmarks"
    probes = "probes"
    runs = "runs"


def add(app: typer.Typer) -> None:
    app.command("list", epilog="Example: finetrace list organisms --type SDF --model qwen3_1_7B")(listing)


def listing(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option("--in", help="A folder of results.", show_default="finetrace-audit or finetrace-runs"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, and whole.")] = False,
    of_type: Annotated[
        str | None, typer.Option("--type", help="Type of organism, e.g. SDF.", rich_help_panel=FILTERS)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Tuned from this model.", rich_help_panel=FILTERS)] = None,
    variant: Annotated[
        str | None, typer.Option(help="With this variant, e.g. 'mix*'; runs too.", rich_help_panel=FILTERS)
    ] = None,
    form: Annotated[
        str | None, typer.Option("--form", help="Adapter or full.", rich_help_panel=FILTERS)
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            help="This in the name or in what was planted, or in a run's folder or command.",
            rich_help_panel=FILTERS,
        ),
    ] = None,
    control: Annotated[
        bool | None,
        typer.Option("--control/--no-control", help="Built to change nothing.", rich_help_panel=FILTERS),
    ] = None,
    computed: Annotated[
        bool,
        typer.Option(
            "--computed", help="Only what a folder of results has runs of.", rich_help_panel=FILTERS
        ),
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="One line a variant.", rich_help_panel=FILTERS)
    ] = False,
    config_dir: Annotated[
        Path | None, typer.Option(help="Your own organisms and models.", rich_help_panel=FILTERS)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="On this base, by id or name.", rich_help_panel=OF_RUNS)
    ] = None,
    organism: Annotated[
        str | None, typer.Option(help="Of this fine-tune, e.g. 'cake*'.", rich_help_panel=OF_RUNS)
    ] = None,
    method: Annotated[str | None, typer.Option(help="Of this method.", rich_help_panel=OF_RUNS)] = None,
    contrast: Annotated[
        str | None, typer.Option(help="pair, self, 'null:*' or 'dose:*'.", rich_help_panel=OF_RUNS)
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Made since: 7d, 12h or a date.", rich_help_panel=OF_RUNS)
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Nulls, doses and noise floors too.", rich_help_panel=OF_RUNS)
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Write all their numbers to this Parquet file.", rich_help_panel=OF_RUNS),
    ] = None,
) -> None:
    """List methods, organisms and the models they were tuned from, training recipes and their settings, what a rule may
    name, benchmarks that --prompts takes, the bundled probes, or the runs on a shelf."""
    filters = {
        "type": of_type, "model": model, "variant": variant, "kind": form, "text": match, "control": control,
    }  # fmt: skip
    runs = {"base": base, "tuned": organism, "method": method, "contrast": contrast}
    _check_filters(kind, filters, computed, long)
    _check_runs(kind, {**runs, "since": since, "all": everything or None, "export": export})
    if kind is Kind.runs:
        from finetrace.cli.runs import show
        from finetrace.core.shelf_find import Filter

        wanted = Filter(base, organism, variant, method, contrast=contrast or "pair", text=match)
        show(
            folder or _usual(AUDITS, RUNS),
            wanted,
            everything=everything,
            since=since,
            as_json=as_json,
            export=export,
        )
        return
    shelf = None if not (computed or folder) else folder or _usual(RUNS, AUDITS)
    asked = catalogue.Asked(config_dir, shelf, computed=computed, long=long, whole=as_json)
    found = {
        Kind.methods: _methods,
        Kind.organisms: lambda: catalogue.organism_rows(filters, asked),
        Kind.models: lambda: catalogue.model_rows(filters, config_dir),
        Kind.recipes: _recipes,
        Kind.settings: _settings,
        Kind.rules: _rules,
        Kind.benchmarks: _benchmarks,
        Kind.probes: _probes,
    }
    rows = found[kind]()
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        _show(rows, cut=kind is Kind.organisms and not long, wide=kind in (Kind.organisms, Kind.models))
    else:
        narrowed = computed or any(value is not None for value in filters.values())
        typer.echo(f"No {kind} are so." if narrowed else f"There are no {kind} yet.")


def _check_filters(kind: Kind, filters: dict[str, Any], computed: bool, long: bool) -> None:
    allowed = {
        Kind.organisms: set(filters),
        Kind.models: {"model", "text"},
        Kind.runs: {"variant", "text"},
    }.get(kind, set())
    given = {name for name, value in filters.items() if value is not None}
    given |= {name for name, value in (("computed", computed), ("long", long)) if value}
    allowed |= {"computed", "long"} if kind is Kind.organisms else set()
    if given - allowed:
        words = {"kind": "form", "text": "match"}
        told = ", ".join(f"--{words.get(name, name)}" for name in sorted(given - allowed))
        raise BadInput(f"`finetrace list {kind}` takes no {told}: it is for `finetrace list organisms`.")


def _check_runs(kind: Kind, given: dict[str, Any]) -> None:
    told = [
        f"--{'organism' if name == 'tuned' else name}" for name, value in given.items() if value is not None
    ]
    if told and kind is not Kind.runs:
        raise BadInput(
            f"`finetrace list {kind}` takes no {', '.join(told)}: it is for `finetrace list runs`."
        )


def _usual(first: Path, second: Path) -> Path:
    """Where results land if nothing else is said: the first that is there."""
    return second if second.is_dir() and not first.is_dir() else first


def _methods() -> list[dict[str, Any]]:
    found, broken = discover()
    rows = [
        {"name": m.name, "version": m.version, "primary": m.primary, "summary": m.summary}
        for m in found.values()
    ]
    return rows + [{"name": b.name, "version": "broken", "primary": "", "summary": b.error} for b in broken]


def _recipes() -> list[dict[str, Any]]:
    from finetrace.config import find_recipe, recipe_names

    return [{"name": name, "summary": find_recipe(name).summary} for name in recipe_names()]


def _settings() -> list[dict[str, Any]]:
    from finetrace.config import SETTINGS, as_settings
    from finetrace.config.settings import SHORT
    from finetrace.finetune.recipe import TrainRecipe

    short = {name: word for word, name in SHORT.items()}
    defaults = as_settings(TrainRecipe())
    return [
        {"setting": name, "short": short.get(name, ""), "takes": setting.takes, "default": defaults[name]}
        for name, setting in SETTINGS.items()
    ]


def _rules() -> list[dict[str, Any]]:
    """What `--fail-on` may name: verdicts first, then the measures of safety and capability, then every other number."""
    from finetrace.api.rules import VERDICTS, names

    rows = [
        {
            "rule": f"{about}={word}",
            "method": "",
            "unit": "verdict",
            "worse": "",
            "about": about,
            "margin": None,
        }
        for about, word in VERDICTS.items()
    ]
    for one in sorted(names(), key=lambda one: not one.about):
        facts = {"unit": one.unit, "worse": one.worse, "about": one.about, "margin": one.margin}
        rows.append({"rule": one.name, "method": one.method, **facts})
    return rows


def _benchmarks() -> list[dict[str, Any]]:
    """Nothing of them is here: where they lie, and what a user needs to read them."""
    from finetrace.data.benchmarks import BENCHMARKS

    return [
        {
            "name": one.name,
            "asks": one.about,
            "licence": one.licence,
            "access": one.gate,
            "data_set": one.repo,
            "revision": one.revision[:8] if one.revision else "newest",
        }
        for one in BENCHMARKS.values()
    ]


def _probes() -> list[dict[str, Any]]:
    from finetrace.data.probes import own_probes

    return [{"id": one.id, "expect": one.expect, "prompt": one.text} for one in own_probes()]


def _show(rows: list[dict[str, Any]], *, cut: bool = False, wide: bool = False) -> None:
    """cut: one line a row, the last column cut where it is too long. wide: a file or a pipe has no width."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if (cut or wide) and not console.is_terminal:
        console = Console(width=WIDE if cut else WIDEST)
    if cut:
        rows = _cut(rows, console.width)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(rows[0]):
        table.add_column(column, overflow="fold", no_wrap=number == 0 or cut)
    for row in rows:
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    console.print(table)


def _cut(rows: list[dict[str, Any]], width: int) -> list[dict[str, Any]]:
    """The rows with the last column in the room that the others leave; a narrow screen shows fewer of them."""
    from finetrace.drawing.text import one_line, shorten

    *names, last = [name for name in rows[0] if width >= ROOMY or name not in LEFT_OUT]
    taken = sum(2 + max(len(name), *(len(str(row[name])) for row in rows)) for name in names)
    room = max(width - taken - 2, len(last) + 1)
    return [{name: row[name] for name in names} | {last: shorten(one_line(row[last]), room)} for row in rows]
