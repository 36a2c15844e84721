"""`finetrace list`: what there is."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetrace.core.card import discover
from finetrace.core.errors import BadInput

if TYPE_CHECKING:
    from finetrace.config.tree import OrganismEntry, Variant

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
    found = {
        Kind.methods: _methods,
        Kind.organisms: lambda: _organisms(filters, config_dir, shelf, computed, long, as_json),
        Kind.models: lambda: _models(filters, config_dir),
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


def _organisms(
    filters: dict[str, Any],
    config_dir: Path | None,
    shelf: Path | None,
    computed: bool,
    long: bool,
    whole: bool,
) -> list[dict[str, Any]]:
    """One row an organism, or with `long` a variant. shelf: the folder whose runs are told of."""
    from finetrace.config import catalogue

    entries = catalogue.select(catalogue.organisms(config_dir), **filters)
    done: dict[tuple[str, str, str], tuple[str, ...]] = {}
    if shelf is not None:
        from finetrace.core.shelf import Shelf

        done = catalogue.computed(entries, catalogue.models(config_dir), Shelf(shelf / "runs").runs())
    if computed:
        names = {organism for organism, _, _ in done}
        entries = tuple(entry for entry in entries if entry.name in names)
    if long:
        return [
            row
            for entry in entries
            for row in _variants(entry, done, shelf is not None)
            if row.get("computed") or not computed
        ]
    if whole:
        return [_whole(entry, done, shelf is not None) for entry in entries]
    return [_line(entry, done, shelf is not None) for entry in entries]


def _line(
    entry: OrganismEntry, done: dict[tuple[str, str, str], tuple[str, ...]], told: bool
) -> dict[str, Any]:
    models = list(entry.finetuned_models)
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    row = {
        "name": entry.name,
        "type": entry.type,
        "models": f"{models[0]}{more}" if models else "any",
        "variants": sum(map(len, entry.finetuned_models.values())),
    }
    if not told:
        return row | {"what": " ".join((entry.description or entry.description_long).split())}
    mine = [f"{_place(key)}: {', '.join(methods)}" for key, methods in done.items() if key[0] == entry.name]
    return row | {"computed": "; ".join(mine)}


def _place(key: tuple[str, str, str]) -> str:
    _, model, variant = key
    return model if variant == "default" else f"{model} {variant}"


def _variants(
    entry: OrganismEntry, done: dict[tuple[str, str, str], tuple[str, ...]], told: bool
) -> list[dict[str, Any]]:
    rows = []
    for model, variants in entry.finetuned_models.items():
        for name, variant in variants.items():
            row = {"name": entry.name, "model": model, "variant": name, **_facts(name, variant)}
            if told:
                row["computed"] = ", ".join(done.get((entry.name, model, name), ()))
            rows.append(row)
    if not entry.finetuned_models:
        keys = [key for key in done if key[0] == entry.name]
        rows += [
            {
                "name": entry.name,
                "model": key[1],
                "variant": key[2],
                "kind": "base",
                "dial": "",
                "source": "",
                "computed": ", ".join(done[key]),
            }
            for key in keys
        ]
    return rows


def _facts(name: str, variant: Variant) -> dict[str, Any]:
    from finetrace.config.catalogue import dial, kind_of

    turned = dial(name)
    return {
        "kind": kind_of(variant),
        "dial": "" if turned is None else f"{turned[0]}: {turned[1]:g}",
        "source": variant.source or "",
    }


def _whole(
    entry: OrganismEntry, done: dict[tuple[str, str, str], tuple[str, ...]], told: bool
) -> dict[str, Any]:
    """Everything that its file says, and each variant's kind and dial."""
    from dataclasses import asdict

    from finetrace.config.catalogue import dial, kind_of

    found = {
        name: value for name, value in vars(entry).items() if name not in ("finetuned_models", "dataset")
    }
    found["dataset"] = None if entry.dataset is None else asdict(entry.dataset)
    found["preprocessing_overrides"] = dict(entry.preprocessing_overrides)
    found["finetuned_models"] = {
        model: {
            name: {
                **{key: value for key, value in vars(variant).items() if value is not None},
                "kind": kind_of(variant),
                "dial": dial(name),
                **({"computed": done.get((entry.name, model, name), ())} if told else {}),
            }
            for name, variant in variants.items()
        }
        for model, variants in entry.finetuned_models.items()
    }
    return found


def _models(filters: dict[str, Any], config_dir: Path | None) -> list[dict[str, Any]]:
    from finetrace.config import catalogue

    tuned: dict[str, set[str]] = {}
    for one in catalogue.trained(catalogue.organisms(config_dir)):
        tuned.setdefault(one.model, set()).add(one.organism)
    found = catalogue.select_models(
        catalogue.models(config_dir), model=filters["model"], text=filters["text"]
    )
    return [
        {
            "name": one.name,
            "model_id": one.model_id,
            "dtype": one.checkpoint_dtype or one.dtype,
            "thinking": "switchable" if one.has_enable_thinking else "",
            "organisms": len(tuned.get(one.name, ())),
        }
        for one in found
    ]


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
