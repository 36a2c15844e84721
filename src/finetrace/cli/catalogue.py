"""The rows of `finetrace list organisms` and `finetrace list models`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetrace.config.tree import OrganismEntry, Variant

Row = dict[str, Any]
Done = Mapping[tuple[str, str, str], tuple[str, ...]]


@dataclass(frozen=True)
class Asked:
    """How organisms are to be listed. config_dir: a user's own. shelf: the folder of results whose runs are told of.
    computed: only what has some there. long: one row a variant. whole: all that is known."""

    config_dir: Path | None = None
    shelf: Path | None = None
    computed: bool = False
    long: bool = False
    whole: bool = False


def organism_rows(filters: Mapping[str, Any], asked: Asked) -> list[Row]:
    """One row an organism, or a variant. filters: those of `catalogue.select`."""
    from finetrace.config import catalogue

    entries = catalogue.select(catalogue.organisms(asked.config_dir), **filters)
    done: Done | None = None
    if asked.shelf is not None:
        from finetrace.core.shelf import Shelf

        runs = Shelf(asked.shelf / "runs").runs()
        done = catalogue.computed(entries, catalogue.models(asked.config_dir), runs)
    if asked.computed:
        entries = tuple(entry for entry in entries if _of(entry, done))
    if asked.long:
        rows = [row for entry in entries for row in _variants(entry, done)]
        return [row for row in rows if row["computed"]] if asked.computed else rows
    return [_whole(entry, done) if asked.whole else _line(entry, done) for entry in entries]


def model_rows(filters: Mapping[str, Any], config_dir: Path | None) -> list[Row]:
    """One row a model. filters: `model` and `text` of them."""
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


def _of(entry: OrganismEntry, done: Done | None) -> dict[tuple[str, str], tuple[str, ...]]:
    """(model, variant) -> methods that were computed of the organism."""
    return {key[1:]: methods for key, methods in (done or {}).items() if key[0] == entry.name}


def _line(entry: OrganismEntry, done: Done | None) -> Row:
    models = list(entry.finetuned_models)
    more = f" +{len(models) - 1}" if len(models) > 1 else ""
    row = {
        "name": entry.name,
        "type": entry.type,
        "models": f"{models[0]}{more}" if models else "any",
        "variants": sum(map(len, entry.finetuned_models.values())),
    }
    if done is None:
        return row | {"what": " ".join((entry.description or entry.description_long).split())}
    mine = [
        f"{model if variant == 'default' else f'{model} {variant}'}: {', '.join(methods)}"
        for (model, variant), methods in _of(entry, done).items()
    ]
    return row | {"computed": "; ".join(mine)}


def _variants(entry: OrganismEntry, done: Done | None) -> list[Row]:
    mine = _of(entry, done)
    rows = [
        {"name": entry.name, "model": model, "variant": name, **_facts(name, variant)}
        | ({} if done is None else {"computed": ", ".join(mine.get((model, name), ()))})
        for model, variants in entry.finetuned_models.items()
        for name, variant in variants.items()
    ]
    if entry.finetuned_models:
        return rows
    return [
        {"name": entry.name, "model": model, "variant": name, "kind": "base", "dial": "", "source": ""}
        | {"computed": ", ".join(methods)}
        for (model, name), methods in mine.items()
    ]


def _facts(name: str, variant: Variant) -> Row:
    from finetrace.config.catalogue import dial, kind_of

    turned = dial(name)
    return {
        "kind": kind_of(variant),
        "dial": "" if turned is None else f"{turned[0]}: {turned[1]:g}",
        "source": variant.source or "",
    }


def _whole(entry: OrganismEntry, done: Done | None) -> Row:
    """Everything that its file says, each variant's kind and dial, and what was computed: model -> variant -> methods."""
    from finetrace.config.catalogue import dial, kind_of

    found = {key: value for key, value in vars(entry).items() if key not in ("finetuned_models", "dataset")}
    found["dataset"] = None if entry.dataset is None else asdict(entry.dataset)
    found["preprocessing_overrides"] = dict(entry.preprocessing_overrides)
    found["finetuned_models"] = {
        model: {
            name: {
                **{key: value for key, value in vars(variant).items() if value is not None},
                "kind": kind_of(variant),
                "dial": dial(name),
            }
            for name, variant in variants.items()
        }
        for model, variants in entry.finetuned_models.items()
    }
    if done is not None:
        computed: dict[str, dict[str, tuple[str, ...]]] = {}
        for (model, name), methods in _of(entry, done).items():
            computed.setdefault(model, {})[name] = methods
        found["computed"] = computed
    return found
