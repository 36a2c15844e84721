"""The passages on which something is largest, in one SQLite file: written once, then only read, by any number of viewers.

    about      what the file is: version, how many are kept, what the groups are of
    groups     a latent or a metric each; maximum: of its score over the texts, where bins were asked for
    sequences  each text once, named by the hash of its token ids
    examples   (group, list) -> its sequences with the group's score and its value at every token

A group's first list (bin -1) are its largest. Its other lists are samples of what lies between parts of its maximum: how a
latent looks at half strength is not seen from its extremes. Ties go to the lower hash, so a file is a function of what was
offered, whatever the order, and two files merged are, byte for byte, the one that would have been made of both.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float, Int

from finetrace.core.errors import BadInput, DataError
from finetrace.core.page import Passage
from finetrace.store.near import without_near_duplicates

__all__ = ["BINS", "Example", "Examples", "Group", "Text"]

BINS = (0.25, 0.5, 0.75, 0.95, 1.0)
"""Upper ends of the bins, as parts of a group's maximum; each holds its upper end and not its lower."""
BEST = -1
GRAM = 8
"""Texts are near-duplicates by their sets of so many tokens in a row."""

APPLICATION, VERSION = 0x46544558, 1
SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE groups (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, maximum REAL);
CREATE TABLE sequences (id INTEGER PRIMARY KEY, uid BLOB NOT NULL UNIQUE, ids BLOB NOT NULL, tokens TEXT NOT NULL,
    text TEXT NOT NULL);
CREATE TABLE examples (grp INTEGER NOT NULL, bin INTEGER NOT NULL, place INTEGER NOT NULL, sequence INTEGER NOT NULL,
    score REAL NOT NULL, slice TEXT NOT NULL, row TEXT NOT NULL, start INTEGER NOT NULL, vals BLOB NOT NULL,
    PRIMARY KEY (grp, bin, place)) WITHOUT ROWID;
CREATE INDEX of_sequence ON examples (sequence);
"""
_COLUMNS = "g.name, e.bin, e.score, e.start, e.vals, s.uid, s.ids, s.tokens, s.text, e.slice, e.row"
_FROM = "examples e JOIN groups g ON g.id = e.grp JOIN sequences s ON s.id = e.sequence"


@dataclass(frozen=True)
class Text:
    """A sequence that may become an example. tokens: each decoded. text: for searching; the tokens joined where it is not given.
    Both follow from the ids. slice, row: of the corpus; row is the content hash of what it is from."""

    ids: Int[np.ndarray, " token"]
    tokens: Sequence[str]
    slice: str
    row: int
    text: str = ""

    @cached_property
    def uid(self) -> bytes:
        """16 bytes, of the token ids alone."""
        return hashlib.blake2b(np.asarray(self.ids, dtype="<i8").tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Group:
    """name: of a latent or metric. examples: in its first list, near-duplicates among them. best: the largest score; None
    where there is no example. maximum: what its bins are parts of; None where it has no bins."""

    name: str
    examples: int
    best: float | None
    maximum: float | None


@dataclass(frozen=True)
class Example:
    """A sequence under a group. bin: index in BINS, None in the list of the largest. values: the group's value at each token,
    NaN where it has none. folded: near-duplicates of lower score that it stands for."""

    group: str
    bin: int | None
    score: float
    values: Float[np.ndarray, " token"]
    uid: str
    ids: Int[np.ndarray, " token"]
    tokens: tuple[str, ...]
    text: str
    slice: str
    row: int
    folded: int = 0

    def passage(self, title: str, unit: str = "") -> Passage:
        values = tuple(None if np.isnan(value) else float(value) for value in self.values)
        note = f"and {self.folded} near-duplicates" if self.folded else ""
        return Passage(title, self.tokens, values, unit, self.slice, note)


@final
class Examples:
    """Reads a file of examples; never writes to it. A connection is opened for each question, so threads may share this."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        if not self.path.is_file():
            raise BadInput(f"There is no file of examples {path}.")
        with self._connection() as db:
            check_file(db, path)
            self.about: dict[str, Any] = read_about(db)
            self.k = int(self.about["k"])

    def groups(self) -> tuple[Group, ...]:
        query = (
            "SELECT g.name, count(e.grp), max(e.score), g.maximum FROM groups g "
            "LEFT JOIN examples e ON e.grp = g.id AND e.bin = ? GROUP BY g.id ORDER BY g.id"
        )
        with self._connection() as db:
            return tuple(Group(*row) for row in db.execute(query, (BEST,)))

    def best(self, group: str, k: int | None = None) -> tuple[Example, ...]:
        """The group's largest, near-duplicates folded into the largest of their kind; at most k, the file's own unless given.
        Fewer than there are texts where near-duplicates fill the file's reserve of as many again."""
        return folded(self._list(group, BEST))[: self._wanted(k)]

    def bin(self, group: str, bin: int, k: int | None = None) -> tuple[Example, ...]:
        """A sample, by hash, of the group's texts whose score lies in that bin, near-duplicates folded; largest first."""
        if not 0 <= bin < len(BINS):
            raise BadInput(f"There is no bin {bin}: bins are 0 to {len(BINS) - 1}.")
        kept = sorted(folded(self._list(group, bin)), key=lambda one: one.uid)[: self._wanted(k)]
        return tuple(sorted(kept, key=_place))

    def search(self, text: str, group: str | None = None, k: int = 50) -> tuple[Example, ...]:
        """Of the largest of all groups, or of one: those whose text holds `text`, upper or lower case alike; largest first,
        groups in order. Nothing is folded."""
        pattern = text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")
        query = (
            f"SELECT {_COLUMNS} FROM {_FROM} WHERE e.bin = ? AND s.text LIKE ? ESCAPE '\\' AND (? IS NULL OR g.name = ?) "
            "ORDER BY e.score DESC, s.uid, e.grp LIMIT ?"
        )
        return self._examples(query, (BEST, f"%{pattern}%", group, group, self._wanted(k)))

    def _list(self, group: str, bin: int) -> tuple[Example, ...]:
        query = f"SELECT {_COLUMNS} FROM {_FROM} WHERE g.name = ? AND e.bin = ? ORDER BY e.score DESC, s.uid"
        found = self._examples(query, (group, bin))
        if not found:
            with self._connection() as db:
                known = db.execute("SELECT 1 FROM groups WHERE name = ?", (group,)).fetchone()
                names = [name for (name,) in db.execute("SELECT name FROM groups ORDER BY id LIMIT 3")]
            if known is None:
                raise BadInput(f"There is no group '{group}' in {self.path}: it has {', '.join(names)} …")
        return found

    def _wanted(self, k: int | None) -> int:
        if k is not None and k < 1:
            raise BadInput(f"At least one example is asked for, not {k}.")
        return self.k if k is None else k

    def _examples(self, query: str, values: tuple[Any, ...]) -> tuple[Example, ...]:
        with self._connection() as db:
            return tuple(_example(row) for row in db.execute(query, values))

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(read_only(self.path), uri=True)) as db:
                db.execute("PRAGMA trusted_schema = OFF")
                yield db
        except (sqlite3.DatabaseError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self.path} is damaged or no file of examples: {error}. Make it again."
            ) from None


def read_only(path: Path) -> str:
    """The address of a file that nobody changes any more: no lock, and no file beside it."""
    return f"{path.resolve().as_uri()}?mode=ro&immutable=1"


def check_file(db: sqlite3.Connection, path: Path) -> None:
    """DataError unless it is a file of examples in this version."""
    kind, version = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if kind != APPLICATION:
        raise DataError(f"{path} is no file of examples of finetrace's.")
    if version != VERSION:
        raise DataError(
            f"{path} is a file of examples in version {version}, and this reads version {VERSION}: make it again."
        )


def read_about(db: sqlite3.Connection, schema: str = "main") -> dict[str, Any]:
    return {name: json.loads(value) for name, value in db.execute(f"SELECT name, value FROM {schema}.about")}


def folded(found: Sequence[Example]) -> tuple[Example, ...]:
    """Without those that are near-duplicates of a better one that stays; `found` is largest first."""
    return tuple(without_near_duplicates(found, GRAM, lambda example: example.ids))


def _place(example: Example) -> tuple[float, str]:
    return -example.score, example.uid


def _example(row: tuple[Any, ...]) -> Example:
    """ValueError where the parts do not fit one another."""
    group, bin, score, start, vals, uid, ids, tokens, text, slice_name, key = row
    found, pieces = np.frombuffer(ids, "<i4"), tuple(json.loads(tokens))
    values = np.zeros(len(found), dtype=np.float32)
    held = np.frombuffer(vals, "<f4")
    if len(pieces) != len(found) or not 0 <= start <= len(found) - len(held):
        raise ValueError("an example does not fit its text")
    values[start : start + len(held)] = held
    return Example(
        group,
        None if bin == BEST else bin,
        score,
        values,
        uid.hex(),
        found,
        tuple(str(piece) for piece in pieces),
        text,
        slice_name,
        int(key, 16),
    )
