"""Paired activations on disk, for those who ask for them: written once behind the pass, read often, never mixed up.

    ROOT/<key>/key.json            what they are made from: written first
               00000.safetensors   a shard: layer.<i> [row, model, d] for each layer; row, position, role, slice [row]
               shards.jsonl        a line a shard as it is done: what a killed writer goes on from
               manifest.json       rows and SHA-256 of every shard: written last, so that its being there means all is

The folder's name is the hash of what the activations are made from, so those of another model, corpus or layer are never
found. One process writes; any number read, without a lock.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import read_json, write_json, write_text
from finetrace.store.disk import check_room, writing
from finetrace.store.layout import (
    DTYPES,
    KEY,
    LOCK,
    MANIFEST,
    SHARDS,
    WHERE,
    Layout,
    Where,
    check_key,
    described,
    folder_of,
    holding,
    layer_name,
    layout_from,
    nearest,
    read_key,
)
from finetrace.store.lock import alone
from finetrace.store.shard_file import mapped, sha256_of, write

__all__ = ["Activations", "ActivationsWriter", "Layout", "Where"]

QUEUE = 2
"""Shards that may wait to be written: what the writer holds in memory is at most this and the one being filled."""


@dataclass(frozen=True)
class _Shard:
    """index: its file's name. rows: how many. content: the caller's mark of what it is from. size: bytes."""

    index: int
    rows: int
    content: str
    size: int
    sha256: str

    def path(self, folder: Path) -> Path:
        return _shard_path(folder, self.index)

    def problem(self, folder: Path) -> str | None:
        """What is wrong with the file; None if it is what was written."""
        path = self.path(folder)
        try:
            size = path.stat().st_size
        except OSError:
            return f"{path} is not there"
        if size != self.size:
            return f"{path} is cut short or was changed: it has {size:,} bytes and was written with {self.size:,}"
        return None if sha256_of(path) == self.sha256 else f"{path} is damaged: its checksum is another"


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


@final
class ActivationsWriter:
    """Writes one cache; a context manager. On leaving it, all is on the disk or an error says what is not.

        with ActivationsWriter(root, made_of, layout, rows=n) as writer:
            for shard in shards:
                if not writer.has(shard.index, shard.content):
                    for ...: writer.add(where, {layer: states})
                    writer.cut(shard.index, shard.content)

    made_of: what moves the numbers and is not in the layout, as JSON would take it: content hashes of base and tuned,
    tokenizer, corpus, context, positions kept. rows: how many are expected, so that a disk that is too small is known before
    the work. A shard that is whole from an earlier run is kept; its content must be what `has` and `cut` are told, so shards
    cut elsewhere are written anew. redone: indices of those that were found damaged.
    """

    def __init__(
        self, root: Path, made_of: Mapping[str, Any], layout: Layout, *, rows: int | None = None
    ) -> None:
        self.folder = folder_of(root, made_of, layout)
        self.layout = layout
        self.redone: tuple[int, ...] = ()
        self._key = described(made_of, layout)
        self._rows = rows
        self._done: dict[int, _Shard] = {}
        self._wanted: set[int] = set()
        self._waiting: deque[Future[_Shard]] = deque()
        self._stack = ExitStack()
        self._begin()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._tidy)
            with writing(self.folder, 0, "A cache of activations"):
                stack.enter_context(alone(self.folder / LOCK, f"The cache {self.folder}"))
                self._take_up()
            self._thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="activations"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._finish()

    def has(self, index: int, content: str = "") -> bool:
        """Whether that shard is already stored, whole and made from `content`. It then belongs to the cache."""
        kept = index in self._done and self._done[index].content == content
        if kept:
            self._wanted.add(index)
        return kept

    def add(self, where: Where, hidden: Mapping[int, Float[Tensor, "row model d"]]) -> None:
        """Rows of the shard being filled, with their states after every layer; copied to the CPU in the stored type."""
        self._check(where, hidden)
        for layer, states in hidden.items():
            held = states.detach().to("cpu", DTYPES[self.layout.dtype], copy=True)
            self._filled[layer_name(layer)].append(held)
        for name, dtype in WHERE.items():
            self._filled[name].append(getattr(where, name).detach().to("cpu", dtype, copy=True))

    def cut(self, index: int, content: str = "") -> None:
        """The rows added since the last cut are shard `index`; it is written behind what the caller does next. An error in
        writing an earlier one is raised here."""
        while self._waiting and (len(self._waiting) >= QUEUE or self._waiting[0].done()):
            self._note(self._waiting.popleft().result())
        filled = self._filled
        self._begin()
        self._wanted.add(index)
        self._waiting.append(self._thread.submit(self._write, index, content, filled))

    def _begin(self) -> None:
        empty = {
            name: torch.empty([0, *shape[1:]], dtype=dtype)
            for name, (shape, dtype) in self.layout.tensors(0).items()
        }
        self._filled: dict[str, list[Tensor]] = {name: [tensor] for name, tensor in empty.items()}

    def _check(self, where: Where, hidden: Mapping[int, Tensor]) -> None:
        if set(hidden) != set(self.layout.layers):
            raise BadInput(
                f"This cache is of layers {list(self.layout.layers)}, and was given {sorted(hidden)}."
            )
        shapes = {name: list(getattr(where, name).shape) for name in WHERE}
        shapes |= {layer_name(layer): list(states.shape) for layer, states in hidden.items()}
        for name, (shape, _) in self.layout.tensors(len(where)).items():
            if shapes[name] != shape:
                raise BadInput(f"'{name}' is {shapes[name]}, and this cache takes {shape}.")

    def _take_up(self) -> None:
        """What an earlier writer left that is whole; from here on the cache counts as unfinished until it is finished."""
        known = (self.folder / KEY).exists()
        if known:
            check_key(self.folder, read_key(self.folder), self._key)
        for path in self.folder.glob(".*.part"):
            path.unlink()  # half a file of a killed writer: the lock is ours, so nobody else is at it
        left = _left(self.folder)
        self._done = {shard.index: shard for shard in left if shard.problem(self.folder) is None}
        self.redone = tuple(sorted({shard.index for shard in left} - set(self._done)))
        if self._rows is not None:
            missing = max(0, self._rows - sum(shard.rows for shard in self._done.values()))
            check_room(self.folder, self.layout.bytes(missing), f"Storing {missing:,} rows of activations")
        if not known:
            write_json(self.folder / KEY, self._key)
        write_text(self.folder / SHARDS, "".join(_line(self._done[index]) for index in sorted(self._done)))
        (self.folder / MANIFEST).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Leaves no empty folder behind, where nothing was begun."""
        with suppress(OSError):
            self.folder.rmdir()  # which the system refuses for one that is not empty

    def _write(self, index: int, content: str, tensors: Mapping[str, list[Tensor]]) -> _Shard:
        """In the thread."""
        rows = sum(len(piece) for piece in tensors["row"])
        then = " The shards before it are kept: the same run goes on from them."
        with writing(self.folder, self.layout.bytes(rows), f"Shard {index} of the activations", then):
            written = write(_shard_path(self.folder, index), tensors, {"content": content})
            shard = _Shard(index, rows, content, written.size, written.sha256)
            with (self.folder / SHARDS).open("a", encoding="utf-8") as file:
                file.write(_line(shard))
                file.flush()
                os.fsync(file.fileno())
        return shard

    def _note(self, shard: _Shard) -> None:
        self._done[shard.index] = shard

    def _finish(self) -> None:
        while self._waiting:
            self._note(self._waiting.popleft().result())
        if any(len(piece) for piece in self._filled["row"]):
            raise BadInput("Rows were added after the last cut: they belong to no shard.")
        if not self._wanted:
            raise BadInput("No shard of activations was written.")
        if sorted(self._wanted) != list(range(len(self._wanted))):
            raise BadInput(f"Shards are counted from 0 without a gap, not {sorted(self._wanted)}.")
        shards = [self._done[index] for index in sorted(self._wanted)]
        rows = sum(shard.rows for shard in shards)
        if self._rows is not None and rows != self._rows:
            raise BadInput(f"{rows:,} rows of activations were written and {self._rows:,} expected.")
        manifest = {"rows": rows, "key": self._key, "shards": [asdict(shard) for shard in shards]}
        with writing(self.folder, 0, "The manifest of the activations"):
            write_json(self.folder / MANIFEST, manifest)
        for index in set(self._done) - self._wanted:
            _shard_path(self.folder, index).unlink(missing_ok=True)
        (self.folder / SHARDS).unlink()


def _line(shard: _Shard) -> str:
    return json.dumps(asdict(shard), sort_keys=True) + "\n"


def _left(folder: Path) -> list[_Shard]:
    """What an earlier writer says it wrote, finished or not; the last line of a killed one may be torn."""
    if (folder / MANIFEST).exists():
        try:
            return _manifest(folder)
        except DataError:
            return []
    if not (folder / SHARDS).exists():
        return []
    found: list[_Shard] = []
    for line in (folder / SHARDS).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(_Shard(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _manifest(folder: Path) -> list[_Shard]:
    try:
        shards = [_Shard(**shard) for shard in read_json(folder / MANIFEST)["shards"]]
    except (ValueError, KeyError, TypeError):
        shards = []
    fine = all(
        type(shard.index) is type(shard.rows) is type(shard.size) is int and type(shard.sha256) is str
        for shard in shards
    )
    if not shards or not fine or [shard.index for shard in shards] != list(range(len(shards))):
        raise DataError(f"{folder / MANIFEST} is damaged: store the activations again.")
    return shards


@final
class Activations:
    """A finished cache, to read. A shard's checksum is looked at once, before its first row is given out; what is read is
    mapped, so a cache may be larger than memory."""

    def __init__(self, folder: Path) -> None:
        if not (folder / KEY).exists():
            raise DataError(f"There are no stored activations in {folder}.")
        self.folder = folder
        self.key = read_key(folder)
        self.layout = layout_from(self.key["layout"], folder)
        if not (folder / MANIFEST).exists():
            raise DataError(
                f"The activations in {folder} are not finished: {len(_left(folder))} shards are there. What was writing "
                "them goes on from those when it is run again."
            )
        self._shards = _manifest(folder)
        self._ends = np.cumsum([shard.rows for shard in self._shards])
        self._mapped: dict[int, dict[str, Tensor]] = {}

    @classmethod
    def find(cls, root: Path, made_of: Mapping[str, Any], layout: Layout) -> Activations:
        """The cache of exactly this; DataError that says what the nearest differs in."""
        folder, asked = folder_of(root, made_of, layout), described(made_of, layout)
        if not (folder / KEY).exists():
            raise DataError(f"There are no stored activations of this in {root}.{nearest(root, asked)}")
        found = cls(folder)
        check_key(folder, found.key, asked)
        return found

    @classmethod
    def holding(cls, root: Path, made_of: Mapping[str, Any], layout: Layout) -> Activations | None:
        """A finished cache of this, perhaps of more layers, none of whose shards was deleted; None where there is none."""
        for folder in holding(root, described(made_of, layout)):
            if (folder / MANIFEST).exists():
                found = cls(folder)
                if all(shard.path(folder).exists() for shard in found._shards):
                    return found
        return None

    def __len__(self) -> int:
        """Rows, over all shards."""
        return int(self._ends[-1])

    @property
    def shards(self) -> int:
        return len(self._shards)

    def where(self, shard: int) -> Where:
        found = self._read(shard)
        return Where(**{name: found[name] for name in WHERE})

    def states(self, shard: int, layer: int) -> Float[Tensor, "row model d"]:
        """The states after `layer` of every row of a shard, in the stored type; read from the disk as they are touched."""
        self._check_layer(layer)
        return self._read(shard)[layer_name(layer)]

    def rows(self, layer: int, index: Int[Tensor, " row"]) -> Float[Tensor, "row model d"]:
        """The states of the rows at `index`, counted over all shards, in that order."""
        self._check_layer(layer)
        wanted = index.cpu().numpy()
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise BadInput(f"These activations have rows 0 to {len(self) - 1}.")
        shape = [len(wanted), self.layout.models, self.layout.width]
        found = torch.empty(shape, dtype=DTYPES[self.layout.dtype])
        inside = np.searchsorted(self._ends, wanted, side="right")
        for shard in np.unique(inside).tolist():
            here = np.flatnonzero(inside == shard)
            first = int(self._ends[shard]) - self._shards[shard].rows
            found[torch.from_numpy(here)] = self.states(shard, layer)[torch.from_numpy(wanted[here] - first)]
        return found

    def batches(
        self, layer: int, batch: int, generator: torch.Generator | None = None, *, last: bool = True
    ) -> Iterator[Float[Tensor, "row model d"]]:
        """Every row once, `batch` at a time: as stored, or in an order drawn from `generator`, over all shards (which takes 8
        bytes a row of memory). last: the rest that fills no batch is given too."""
        if batch < 1:
            raise BadInput(f"A batch has at least one row, not {batch}.")
        n = len(self)
        order = torch.randperm(n, generator=generator) if generator is not None else None
        for start in range(0, n if last else n - batch + 1, batch):
            stop = min(start + batch, n)
            yield self.rows(layer, torch.arange(start, stop) if order is None else order[start:stop])

    def check(self, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Looks at every checksum; DataError at the first that is wrong."""
        for shard in range(self.shards):
            self._read(shard)
            advance(shard + 1, self.shards)

    def _check_layer(self, layer: int) -> None:
        if layer not in self.layout.layers:
            raise BadInput(f"These activations are of layers {list(self.layout.layers)}, not {layer}.")

    def _read(self, index: int) -> dict[str, Tensor]:
        if index not in self._mapped:
            shard = self._shards[index]
            problem = shard.problem(self.folder)
            if problem:
                raise DataError(
                    f"{problem}. Delete that file and store the activations again: only what is wrong is redone."
                )
            found = mapped(shard.path(self.folder))
            there = {name: (list(tensor.shape), tensor.dtype) for name, tensor in found.items()}
            if there != self.layout.tensors(shard.rows):
                raise DataError(
                    f"{shard.path(self.folder)} does not hold what {MANIFEST} says: store them again."
                )
            self._mapped[index] = found
        return self._mapped[index]
