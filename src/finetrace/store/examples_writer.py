"""Gathers examples while texts go by, and leaves one SQLite file when it is done: see examples.py for what is in it."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
from jaxtyping import Float, Int

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import whole_file
from finetrace.core.runkey import canonical, digest
from finetrace.store.disk import no_room, writing
from finetrace.store.examples import (
    APPLICATION,
    BEST,
    BINS,
    SCHEMA,
    VERSION,
    Examples,
    Text,
    read_only,
)
from finetrace.store.keys import differences, said

__all__ = ["ExamplesWriter"]

RESERVE = 2
"""Each list keeps so many times what is asked for, so that enough is left once near-duplicates are folded."""
_MOST_WAITING, _MOST_BYTES = 32768, 32 * 2**20
_TOKEN_BYTES = 64  # about what a decoded token takes in memory

_WORK = """
CREATE TABLE sequences (uid BLOB PRIMARY KEY, ids BLOB, tokens TEXT, text TEXT) WITHOUT ROWID;
CREATE TABLE examples (grp INTEGER, bin INTEGER, uid BLOB, priority REAL, score REAL, slice TEXT, row TEXT, start INTEGER,
    vals BLOB, PRIMARY KEY (grp, bin, uid)) WITHOUT ROWID;
CREATE TEMP TABLE touched (grp INTEGER, bin INTEGER, PRIMARY KEY (grp, bin)) WITHOUT ROWID;
"""
_SEQUENCE = "ON CONFLICT (uid) DO NOTHING"
# The same token ids may come from two rows, or with two scores: which stays does not depend on which came first.
_EXAMPLE = """ON CONFLICT (grp, bin, uid) DO UPDATE SET priority = excluded.priority, score = excluded.score,
    slice = excluded.slice, row = excluded.row, start = excluded.start, vals = excluded.vals
    WHERE (-excluded.score, excluded.slice, excluded.row, excluded.start, excluded.vals)
    < (-score, slice, row, start, vals)"""
_MERGE_SEQUENCES = (
    f"""INSERT INTO sequences SELECT uid, ids, tokens, text FROM other.sequences WHERE true {_SEQUENCE}"""
)
_MERGE_EXAMPLES = f"""INSERT INTO examples SELECT e.grp, e.bin, s.uid, iif(e.bin = ?, 0.0 - e.score, 0.0), e.score, e.slice,
    e.row, e.start, e.vals FROM other.examples e JOIN other.sequences s ON s.id = e.sequence WHERE true {_EXAMPLE}"""
_PRUNE = """DELETE FROM examples WHERE (grp, bin, uid) IN (SELECT grp, bin, uid FROM (SELECT grp, bin, uid,
    row_number() OVER (PARTITION BY grp, bin ORDER BY priority, uid) AS place FROM examples JOIN touched USING (grp, bin))
    WHERE place > ?)"""
_LIMITS = """SELECT grp, bin, max(priority), max(uid) FROM examples JOIN touched USING (grp, bin)
    GROUP BY grp, bin HAVING count(*) >= ?"""
# In one order whatever the order of arrival, so that the same examples make the same file.
_FILE = """
INSERT INTO sequences SELECT row_number() OVER (ORDER BY uid), uid, ids, tokens, text FROM work.sequences
    WHERE uid IN (SELECT uid FROM work.examples) ORDER BY uid;
INSERT INTO examples SELECT e.grp, e.bin, row_number() OVER (PARTITION BY e.grp, e.bin ORDER BY e.priority, e.uid), s.id,
    e.score, e.slice, e.row, e.start, e.vals FROM work.examples e JOIN sequences s ON s.uid = e.uid ORDER BY 1, 2, 3;
"""


@final
class ExamplesWriter:
    """A context manager; the file at `path` is there, whole, once it is left without an error.

    groups: names of latents or metrics. k: examples a list. maxima: each group's largest score over the texts, from an
    earlier reading, for lists by bins of it; a group whose maximum is 0 or less has none. about: what the examples are of
    (models, layer, unit), kept in the file and compared when files are merged.
    """

    def __init__(
        self,
        path: Path,
        groups: Sequence[str],
        k: int = 20,
        *,
        maxima: Float[np.ndarray, " group"] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if k < 1:
            raise BadInput(f"At least one example a group is kept, not {k}.")
        if not groups or len(set(groups)) != len(groups):
            raise BadInput("Groups of examples need names, each once.")
        self.path = path
        self._groups = tuple(groups)
        self._maxima = _checked_maxima(maxima, len(groups))
        self._pool = RESERVE * k
        self._about = {
            "k": k,
            "of": dict(about or {}),
            "groups": digest(list(groups)),
            "maxima": None if self._maxima is None else digest(self._maxima.tolist()),
        }
        self._least = np.full(len(groups), -np.inf)
        """Score below which nothing enters a group's list of the largest."""
        self._last = np.full((len(groups), len(BINS)), np.iinfo(np.uint64).max, dtype=np.uint64)
        """First 8 bytes of a hash above which nothing enters a bin's list."""
        self._texts: dict[bytes, Text] = {}
        self._waiting: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._whole = True
        self.written = 0
        """Examples that reached the disk so far, those that better ones drove out again among them."""

    def __enter__(self) -> Self:
        with ExitStack() as stack, self._on_disk():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.")
            )
            self._work = Path(scratch) / "work.sqlite"
            self._db = stack.enter_context(closing(_opened(self._work)))
            self._db.executescript(_WORK)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is not None:
                return
            if not self._whole:
                raise BadInput(f"{self.path} was not written: an error before this one left it incomplete.")
            self._flush()
            with self._on_disk():
                self._finish()

    def offer(
        self,
        text: Text,
        scores: Float[np.ndarray, " group"],
        values: Float[np.ndarray, "group token"],
        groups: Int[np.ndarray, " group"] | None = None,
    ) -> None:
        """A text with its score, and value at each token (NaN: has none), in each of `groups` (indices; all in order if None).
        What no list has room for costs a comparison and goes no further."""
        index = np.arange(len(self._groups)) if groups is None else np.asarray(groups)
        scores = np.asarray(scores, dtype=np.float64)
        self._check(text, index, scores, values)
        for bin, places in self._wanted(text, index, scores):
            for place in places.tolist():
                score = float(scores[place])
                start, held = _trimmed(values[place])
                # -0.0 + 0.0 is 0.0: a score has one way to be written.
                priority = 0.0 - score if bin is None else 0.0
                group = int(index[place])
                where = BEST if bin is None else int(bin[place])
                source = (text.slice, f"{text.row:016x}")
                self._waiting.append((group, where, text.uid, priority, score + 0.0, *source, start, held))
                self._bytes += len(held)
                self._keep(text)
        if (
            len(self._waiting) > min(_MOST_WAITING, 2 * self._pool * len(self._groups))
            or self._bytes > _MOST_BYTES
        ):
            self._flush()

    def merge(self, path: Path) -> None:
        """Adds what another writer, of the same groups, k, maxima and about, left at `path`."""
        about = Examples(path).about
        found = differences(about, json.loads(canonical(self._about)))
        if found:
            raise DataError(f"{path} holds examples of something else: {said(found)}.")
        self._flush()
        with self._on_disk(path):
            self._db.execute("ATTACH ? AS other", (read_only(path),))
            with self._together():
                self._db.execute(_MERGE_SEQUENCES)
                self._db.execute(_MERGE_EXAMPLES, (BEST,))
                self._db.execute("INSERT INTO touched SELECT DISTINCT grp, bin FROM other.examples")
                self._prune()
            self._db.execute("DETACH other")

    def _keep(self, text: Text) -> None:
        if text.uid not in self._texts:
            self._texts[text.uid] = text
            self._bytes += _TOKEN_BYTES * len(text.ids)

    def _check(self, text: Text, index: np.ndarray, scores: np.ndarray, values: np.ndarray) -> None:
        n = len(text.ids)
        if len(text.tokens) != n or n == 0:
            raise BadInput(f"A text of {n} token ids came with {len(text.tokens)} decoded tokens.")
        if scores.shape != index.shape or values.shape != (len(index), n):
            raise BadInput(
                f"{len(index)} groups and {n} tokens need scores [{len(index)}] and values [{len(index)}, {n}], not "
                f"{list(scores.shape)} and {list(values.shape)}."
            )
        if not np.isfinite(scores).all():
            raise BadInput("A score of an example is not finite: leave out texts that have none.")

    def _wanted(
        self, text: Text, index: np.ndarray, scores: np.ndarray
    ) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
        """(None, places that may enter the list of the largest), then (bin of each place, places that may enter a bin)."""
        yield None, np.flatnonzero(scores >= self._least[index])
        if self._maxima is not None:
            maxima = self._maxima[index]
            has = (maxima > 0) & (scores > 0)
            part = np.divide(scores, maxima, out=np.zeros_like(scores), where=has)
            bin = np.searchsorted(BINS[:-1], part)
            uid = np.uint64(int.from_bytes(text.uid[:8], "big"))
            yield bin, np.flatnonzero(has & (uid <= self._last[index, bin]))

    def _flush(self) -> None:
        """Puts what waits into the lists, drops what no longer has room, and learns the new limits."""
        with self._on_disk(), self._together():
            texts = [_columns(text) for text in self._texts.values()]
            self._db.executemany(f"INSERT INTO sequences VALUES (?, ?, ?, ?) {_SEQUENCE}", texts)
            places = ", ".join("?" * 9)
            self._db.executemany(f"INSERT INTO examples VALUES ({places}) {_EXAMPLE}", self._waiting)
            touched = {row[:2] for row in self._waiting}
            self._db.executemany("INSERT OR IGNORE INTO touched VALUES (?, ?)", touched)
            self._prune()
        self.written += len(self._waiting)
        self._texts, self._waiting, self._bytes = {}, [], 0

    def _prune(self) -> None:
        self._db.execute(_PRUNE, (self._pool,))
        for group, bin, priority, uid in self._db.execute(_LIMITS, (self._pool,)):
            if bin == BEST:
                self._least[group] = -priority
            else:
                self._last[group, bin] = int.from_bytes(uid[:8], "big")
        self._db.execute("DELETE FROM touched")

    def _finish(self) -> None:
        self._db.commit()
        self._db.close()
        maxima = [None] * len(self._groups) if self._maxima is None else self._maxima.tolist()
        with whole_file(self.path) as temporary, closing(_opened(temporary)) as db:
            db.execute(f"PRAGMA application_id = {APPLICATION}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.executescript(SCHEMA)
            about = [(name, canonical(value)) for name, value in self._about.items()]
            db.executemany("INSERT INTO about VALUES (?, ?)", about)
            groups = zip(range(len(maxima)), self._groups, maxima, strict=True)
            db.executemany("INSERT INTO groups VALUES (?, ?, ?)", groups)
            db.execute("ATTACH ? AS work", (read_only(self._work),))
            db.executescript(_FILE)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """One transaction: as quick as one change. It cannot be taken back, for there is no journal: an error in it is the
        end of this writer."""
        self._db.execute("BEGIN")
        yield
        self._db.execute("COMMIT")

    @contextmanager
    def _on_disk(self, other: Path | None = None) -> Iterator[None]:
        """What SQLite says of the disk, or of another file that is read, as one line. After it nothing is finished."""
        what = f"The file of examples {self.path.name}"
        self._whole = False
        with writing(self.path.parent, 0, what):
            try:
                yield
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                    raise no_room(self.path.parent, 0, what) from None
                if other is not None:
                    raise DataError(f"{other} cannot be merged: {error}. Make it again.") from None
                raise BadInput(f"{what} cannot be written: {error}.") from None
        self._whole = True


def _opened(path: Path) -> sqlite3.Connection:
    """For a file that counts only once it is finished and renamed, so a crash needs no journal to be mended from."""
    db = sqlite3.connect(path.resolve().as_uri(), uri=True, isolation_level=None)
    db.execute("PRAGMA page_size = 4096")
    db.execute("PRAGMA journal_mode = OFF")
    db.execute("PRAGMA synchronous = OFF")
    return db


def _checked_maxima(maxima: np.ndarray | None, groups: int) -> np.ndarray | None:
    if maxima is None:
        return None
    found = np.asarray(maxima, dtype=np.float64)
    if found.shape != (groups,) or not np.isfinite(found).all():
        raise BadInput(f"Bins need one finite maximum for each of {groups} groups.")
    return found


def _trimmed(values: np.ndarray) -> tuple[int, bytes]:
    """Where the values begin not to be 0, and those from there to the last that is not, float32: a latent is 0 nearly
    everywhere."""
    held = np.asarray(values, dtype="<f4")
    some = np.flatnonzero(held)
    if not len(some):
        return 0, b""
    start = int(some[0])
    return start, held[start : int(some[-1]) + 1].tobytes()


def _columns(text: Text) -> tuple[bytes, bytes, str, str]:
    """As the table has them. A lone surrogate, which no UTF-8 can hold, becomes a question mark."""
    plain = text.text or "".join(text.tokens)
    return (
        text.uid,
        np.asarray(text.ids, dtype="<i4").tobytes(),
        json.dumps([str(token) for token in text.tokens]),
        plain.encode("utf-8", "replace").decode(),
    )
