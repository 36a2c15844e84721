"""Which runs are compared, and which nulls and noise floors stand beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from finetrace.core.errors import BadInput, unknown
from finetrace.core.runkey import canonical
from finetrace.core.shelf_find import Filter, filter_of, flat, shelf_root
from finetrace.core.shelf_index import MANIFEST, PLACE, Entry, entries

_SHORTEST_KEY = 6
PAIR, SELF, NULL = "pair", "self", "null:"


@dataclass(frozen=True)
class Placed:
    """A run and the shelf that it is on."""

    root: Path
    entry: Entry

    @property
    def folder(self) -> Path:
        return self.root / self.entry.folder

    @cached_property
    def protocol(self) -> dict[str, Any] | None:
        """All that its figures depend on but the fine-tune, by dotted name; None for a run whose manifest does not say."""
        told = self.entry.manifest.get("protocol")
        return flat(told) if isinstance(told, dict) and told else None

    @cached_property
    def settings(self) -> str:
        """The protocol as one text: equal where it is. A run that does not say is like no other."""
        return str(self.folder) if self.protocol is None else canonical(self.protocol)

    @property
    def model(self) -> str:
        """The content of the other side."""
        other = self.entry.manifest.get("other")
        return str(other.get("sha256", self.folder)) if isinstance(other, dict) else str(self.folder)


@dataclass(frozen=True)
class Selection:
    """runs: those to compare, of one method. others: every run of that method on their shelves."""

    method: str
    runs: tuple[Placed, ...]
    others: tuple[Placed, ...]

    def nulls(self, run: Placed) -> list[Placed]:
        """Harmless fine-tunes that were read as this run was: each model once, never the run's own, none whose size the
        audit chose itself."""
        found: dict[str, Placed] = {}
        for one in self.others:
            fits = one.entry.contrast.startswith(NULL) and one.settings == run.settings
            if fits and one.model != run.model and not one.entry.manifest.get("trained_here"):
                found.setdefault(one.model, one)
        return list(found.values())

    def trained(self, run: Placed) -> bool:
        """Whether there are nulls of its settings that an audit trained itself."""
        return any(
            one.entry.manifest.get("trained_here") and one.settings == run.settings for one in self.others
        )

    def floor(self, run: Placed) -> Placed | None:
        """The base against itself, read as this run was."""
        same = (one for one in self.others if one.entry.contrast == SELF and one.settings == run.settings)
        return next(same, None)


def select(words: Sequence[str], folder: Path, method: str | None = None) -> Selection:
    """The runs that the words name: a run's folder, a folder of results or the beginning of a key; filters (`organism=...`)
    narrow them, or the runs in `folder` where nothing else is named. Raises BadInput for a word that names nothing."""
    named = [word for word in words if "=" not in word or Path(word).exists()]
    narrow = _filter([word for word in words if word not in named])
    shelves: dict[Path, list[Entry]] = {}
    found: dict[Path, Placed] = {}
    for word in named or [str(folder)]:
        for one in _named(word, shelf_root(folder), shelves):
            if narrow.keeps(one.entry):
                found[one.folder.resolve()] = one
    runs = [one for one in found.values() if method is None or one.entry.method == method]
    if not runs:
        raise BadInput(_nothing(words, folder, found.values(), method))
    methods = sorted({one.entry.method for one in runs})
    if len(methods) > 1:
        raise BadInput(
            f"These runs are of several methods: choose one with --method. They are: {', '.join(methods)}."
        )
    roots = list(dict.fromkeys(one.root for one in runs))
    others = [Placed(root, one) for root in roots for one in _on(root, shelves) if one.method == methods[0]]
    return Selection(methods[0], tuple(_once(runs)), tuple(others))


def _filter(words: Iterable[str]) -> Filter:
    from finetrace.config.catalogue import models

    parts: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        parts[name] = f"{parts[name]},{value}" if name in parts else value
    base = parts.get("base", parts.get("model", ""))
    aliases = {one.name: one.model_id for one in models()} if base and "/" not in base else {}
    return filter_of(parts, aliases)


def _named(word: str, usual: Path, shelves: dict[Path, list[Entry]]) -> list[Placed]:
    """Runs of the pair that one word is of: all of a folder's, or the one in it, or of a key."""
    path = Path(word)
    if (path / MANIFEST).is_file():
        inside = Path(os.path.abspath(path))
        if len(inside.parts) <= len(PLACE):
            raise BadInput(f"{path} is not inside a shelf: its manifest stands too near the root.")
        root = inside.parents[len(PLACE) - 1]
        folder = str(inside.relative_to(root))
        hits = [one for one in _on(root, shelves) if one.folder == folder]
        if not hits:
            raise BadInput(f"{path} is not a whole run: a file that its manifest names is missing.")
        return [Placed(root, hits[0])]
    if path.is_dir():
        root = shelf_root(path)
        return [Placed(root, one) for one in _on(root, shelves) if one.contrast == PAIR]
    found = [one for one in _on(usual, shelves) if one.contrast == PAIR]
    hits = [one for one in found if len(word) >= _SHORTEST_KEY and one.key.startswith(word)]
    if not hits:
        names = {one.tuned for one in found}
        if word in names:
            raise BadInput(f"'{word}' is no folder and no key. Did you mean organism={word}?")
        raise unknown("run", word, names)
    return [Placed(usual, one) for one in hits]


def _on(root: Path, shelves: dict[Path, list[Entry]]) -> list[Entry]:
    if root not in shelves:
        shelves[root] = entries(root)
    return shelves[root]


def _once(runs: Iterable[Placed]) -> list[Placed]:
    """Copies of one run on two shelves are one run."""
    found: dict[tuple[str, ...], Placed] = {}
    for one in runs:
        found.setdefault((one.entry.base, one.entry.tuned, one.entry.variant, one.entry.key, one.model), one)
    return list(found.values())


def _nothing(words: Sequence[str], folder: Path, found: Iterable[Placed], method: str | None) -> str:
    if method is not None and (known := sorted({one.entry.method for one in found})):
        return f"None of these runs is of the method {method}. They are of: {', '.join(known)}."
    asked = f"fits {' '.join(words)}" if words else "is there"
    return f"No whole run of a pair in {shelf_root(folder)} {asked}: see finetrace list runs --in {folder}."
