"""The catalogue: every organism, model and variant that a name finds, with filters over them and what is on a shelf.

Nothing here imports torch or looks anything up on a network.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal

from finetrace.config.groups import names, read_entry
from finetrace.config.tree import ModelEntry, OrganismEntry, Variant
from finetrace.core.errors import BadInput, ConfigErrors, unknown

__all__ = [
    "KINDS", "Kind", "Trained", "computed", "dial", "kind_of", "model_named", "models", "organisms", "select",
    "select_models", "trained", "variants",
]  # fmt: skip

Kind = Literal["adapter", "full", "base"]
KINDS: Final = ("adapter", "full", "base")
_PAIR = "pair"
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Trained:
    """One training of an organism. kind: an adapter, a whole checkpoint, or neither (the base itself)."""

    organism: str
    model: str
    variant: str
    kind: Kind
    source: str | None


def organisms(config_dir: Path | None = None) -> tuple[OrganismEntry, ...]:
    """Every organism: a user's own in `config_dir/organism` before a shipped one of the same name. By name."""
    return _all("organism", config_dir)


def models(config_dir: Path | None = None) -> tuple[ModelEntry, ...]:
    """Every base model, in the same order and with the same precedence."""
    return _all("model", config_dir)


def _all(kind: str, config_dir: Path | None) -> tuple[Any, ...]:
    found, problems = [], []
    for name in names(kind, config_dir):
        try:
            found.append(read_entry(kind, name, config_dir))
        except BadInput as error:
            problems += error.problems if isinstance(error, ConfigErrors) else [str(error)]
    if problems:
        raise ConfigErrors(problems)
    return tuple(found)


def variants(organism: OrganismEntry, model: str) -> Mapping[str, Variant]:
    """The organism's trainings on a model; an unknown model is an error that lists those there are."""
    if model not in organism.finetuned_models:
        raise unknown(f"training of {organism.name} on", model, organism.finetuned_models)
    return organism.finetuned_models[model]


def kind_of(variant: Variant) -> Kind:
    if variant.adapter_id is not None:
        return "adapter"
    return "base" if variant.model_id is None else "full"


def trained(entries: Iterable[OrganismEntry]) -> Iterator[Trained]:
    """Every training of the organisms, in their order."""
    for entry in entries:
        for model, found in entry.finetuned_models.items():
            for name, variant in found.items():
                yield Trained(entry.name, model, name, kind_of(variant), variant.source)


def select(
    entries: Sequence[OrganismEntry],
    *,
    type: str | None = None,
    model: str | None = None,
    variant: str | None = None,
    kind: str | None = None,
    control: bool | None = None,
    text: str | None = None,
) -> tuple[OrganismEntry, ...]:
    """The organisms to which all that is given applies, with those of their trainings to which it applies.

    type, model, variant: a name or a pattern (`mix*`), of any case. kind: of `KINDS`. text: anywhere in the name or in what
    was planted. A name (no pattern) of a type or model that no organism has is an error with the nearest one.
    """
    _known("type", type, {entry.type for entry in entries})
    _known("model", model, {name for entry in entries for name in entry.finetuned_models})
    if kind is not None and kind not in KINDS:
        raise unknown("kind of variant", kind, KINDS)
    narrow = model is not None or variant is not None or kind is not None
    found = []
    for entry in entries:
        if control is not None and entry.control != control:
            continue
        if not _matches(type, entry.type) or not _speaks_of(entry, text):
            continue
        kept = _trainings(entry, model, variant, kind) if narrow else entry.finetuned_models
        if kept or not narrow:
            found.append(replace(entry, finetuned_models=kept))
    return tuple(found)


def select_models(
    entries: Sequence[ModelEntry], *, model: str | None = None, text: str | None = None
) -> tuple[ModelEntry, ...]:
    """The models whose name matches, and whose name or id holds the text."""
    _known("model", model, {entry.name for entry in entries})
    wanted = (text or "").casefold()
    return tuple(
        one
        for one in entries
        if _matches(model, one.name) and wanted in f"{one.name}\n{one.model_id}".casefold()
    )


def _trainings(
    entry: OrganismEntry, model: str | None, variant: str | None, kind: str | None
) -> Mapping[str, Mapping[str, Variant]]:
    found = {
        name: {
            key: one
            for key, one in of.items()
            if _matches(variant, key) and (kind is None or kind_of(one) == kind)
        }
        for name, of in entry.finetuned_models.items()
        if _matches(model, name)
    }
    return {name: of for name, of in found.items() if of}


def _matches(pattern: str | None, name: str) -> bool:
    return pattern is None or fnmatchcase(name.casefold(), pattern.casefold())


def _known(what: str, given: str | None, names: set[str]) -> None:
    if given is None or _WILD.search(given) or given.casefold() in {name.casefold() for name in names}:
        return
    raise unknown(what, given, names)


def _speaks_of(entry: OrganismEntry, text: str | None) -> bool:
    said = (entry.name, entry.type, entry.description or "", entry.description_long)
    return text is None or text.casefold() in "\n".join(said).casefold()


_MIX = re.compile(r"(?:(?P<documents>\d+)k_)?mix(?P<own>\d+)-(?P<other>\d+(?:[p.]\d+)?)")
_BESIDE = re.compile(r"(?P<documents>\d+)k_mix(?P<other>\d+)k")
_DOCUMENTS = re.compile(r"(?P<n>\d+)k")
_COUNTED: Final = (
    (re.compile(r"(?:global[_-]?)?(?:steps?|checkpoint)[_-]?(?P<n>\d+)"), "steps"),
    (re.compile(r"epochs?[_-]?(?P<n>\d+(?:[p.]\d+)?)"), "epochs"),
    (re.compile(r"(?:r|rank)[_-]?(?P<n>\d+)"), "rank"),
)
_THOUSAND = 1000


def dial(variant: str) -> tuple[str, float] | None:
    """What was turned from variant to variant and how far, where the name says so: for curves over it.

    >>> dial("mix1-0p5"), dial("8k"), dial("step_300"), dial("full")
    (('pretraining mixed in per row', 0.5), ('documents', 8000.0), ('steps', 300.0), None)
    >>> dial("8k_mix80k") == dial("8k_mix1-10") == ('pretraining mixed in per row, at 8k documents', 10.0)
    True
    """
    if (found := _BESIDE.fullmatch(variant)) is not None and int(found["documents"]):
        return _mixed(found["documents"], int(found["other"]) / int(found["documents"]))
    if (found := _MIX.fullmatch(variant)) is not None and int(found["own"]):
        return _mixed(found["documents"], _decimal(found["other"]) / int(found["own"]))
    if (found := _DOCUMENTS.fullmatch(variant)) is not None:
        return "documents", float(found["n"]) * _THOUSAND
    for pattern, what in _COUNTED:
        if (found := pattern.fullmatch(variant)) is not None:
            return what, _decimal(found["n"])
    return None


def _mixed(documents: str | None, ratio: float) -> tuple[str, float]:
    at = f", at {documents}k documents" if documents else ""
    return f"pretraining mixed in per row{at}", ratio


def _decimal(text: str) -> float:
    return float(text.replace("p", "."))


def computed(
    entries: Sequence[OrganismEntry], bases: Sequence[ModelEntry], runs: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """(organism, model, variant) -> the methods whose whole runs are on a shelf. runs: the manifests of `Shelf.runs()`.

    A run is known by its address: the base's id, and the organism and variant, or the source that was audited. Runs on
    nulls and on the base itself are none of an organism.
    """
    ids = {one.model_id: one.name for one in bases} | {one.name: one.name for one in bases}
    places: dict[tuple[str, str, str], tuple[str, str, str]] = {}
    for one in trained(entries):
        key = (one.organism, one.model, one.variant)
        places[one.model, one.organism, one.variant] = key
        if one.source is not None:
            for source in (one.source, one.source.removeprefix(f"{one.model}/")):
                places.setdefault((one.model, source, "default"), key)
    for entry in entries:
        if not entry.finetuned_models:
            places |= {
                (base.name, entry.name, "default"): (entry.name, base.name, "default") for base in bases
            }
    found: defaultdict[tuple[str, str, str], set[str]] = defaultdict(set)
    for run in runs:
        if run.get("contrast", _PAIR) != _PAIR:
            continue
        at = run.get("address") or {}
        base = ids.get(str(at.get("base")))
        key = places.get((base, str(at.get("tuned")), str(at.get("variant")))) if base else None
        if key is not None:
            found[key].add(str(at.get("method")))
    return {key: tuple(sorted(methods)) for key, methods in found.items()}


def model_named(given: str, entries: Sequence[ModelEntry]) -> ModelEntry | None:
    """The model that a user means by its name in the catalogue or by its hub id; None if neither is known."""
    for one in entries:
        if given == one.name or given.casefold() == one.model_id.casefold():
            return one
    return None
