"""Where results live: the only code that builds a path to one.

    <root>/<base>/<tuned>/<variant>/<method>/<run key>/{result.json, arrays.safetensors, tables.parquet, manifest.json}

The manifest is written last, so its existence means that the run is whole; it holds the hash of every other file, so a
file that was changed afterwards is found out. Listing goes through an index, a cache beside the runs (`shelf_index`).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.files import read_json, write_bytes, write_json
from finetrace.core.result import Columns, Encoded, decode, encode
from finetrace.core.shelf_index import Entry, entries

SCRATCH = ".scratch"
T = TypeVar("T")


def slug(name: str) -> str:
    """A name as one safe path component: letters, digits, '.', '-', '_'; long or odd ones end in a short hash.

    >>> slug("Qwen/Qwen3-1.7B")
    'Qwen--Qwen3-1.7B'
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name.strip("/").replace("/", "--")).strip(".")
    if plain and len(plain) <= 80 and plain == name.strip("/").replace("/", "--"):
        return plain
    return f"{plain[-60:].strip('.') or 'model'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Address:
    """Which run: names are the user's, the shelf makes them safe."""

    base: str
    tuned: str
    variant: str
    method: str
    key: str


@dataclass(frozen=True)
class Figures:
    """What every Result has, whatever its method: numbers over all slices, and slice -> the same keys."""

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]


@dataclass(frozen=True)
class Shelf:
    """lent: the root of a shelf that others use too, or None: a run that only it holds is copied from there, and what is
    saved here is copied there."""

    root: Path
    lent: Path | None = None

    def path(self, address: Address) -> Path:
        return self.root / self._folder(address)

    def _folder(self, address: Address) -> Path:
        parts = (address.base, address.tuned, address.variant, address.method, address.key)
        return Path(*(slug(part) for part in parts))

    def scratch(self, address: Address) -> Path:
        """Where the journal of an unfinished run lives; it goes when the run is whole."""
        return self.root / SCRATCH / slug(address.key)

    def holds(self, address: Address) -> bool:
        """Is the run whole and unchanged since it was written?"""
        if intact(self.path(address)):
            return True
        return self.lent is not None and _copy(self.lent, self.root, self._folder(address))

    def aside(self, name: str) -> Path:
        """The folder of what is kept beside the runs and named by its own key, such as answers."""
        return (self.lent or self.root) / name

    def save(
        self, address: Address, result: Any, manifest: dict[str, Any], files_of: Path | None = None
    ) -> Path:
        """Writes the result's files, then the manifest, and drops the run's journal. files_of: a folder whose files are moved
        to `files/` beside the result."""
        folder, encoded = self.path(address), encode(result)
        files = {
            "result.json": json.dumps(encoded.body, indent=1, ensure_ascii=False, allow_nan=False).encode()
        }
        if encoded.arrays:
            from safetensors.numpy import save

            files["arrays.safetensors"] = save(dict(sorted(encoded.arrays.items())))
        if encoded.tables:
            files["tables.parquet"] = _to_parquet(encoded.tables)
        for name, data in files.items():
            write_bytes(folder / name, data)
        hashes = {name: _sha256(data) for name, data in files.items()} | _moved(files_of, folder)
        write_json(folder / "manifest.json", {**manifest, "address": vars(address), "files": hashes})
        shutil.rmtree(self.scratch(address), ignore_errors=True)
        if self.lent is not None:
            _copy(self.root, self.lent, self._folder(address))
        return folder

    def load(self, address: Address, kind: type[T]) -> T:
        return load(self.path(address), kind)

    def manifest(self, address: Address) -> dict[str, Any]:
        return read_json(self.path(address) / "manifest.json")

    def entries(self, wanted: Callable[[Entry], bool] | None = None) -> list[Entry]:
        """All whole runs in path order, fast; the files' hashes are not checked. wanted: for which the numbers are read."""
        return entries(self.root, wanted)

    def runs(self) -> Iterator[dict[str, Any]]:
        """The manifests of all whole runs, in path order; the files' hashes are not checked here."""
        for entry in self.entries():
            yield {**entry.manifest, "folder": entry.folder}


def intact(folder: Path) -> bool:
    """Is the run in `folder` whole and unchanged since it was written?"""
    try:
        hashes = read_json(folder / "manifest.json")["files"]
        return all(_sha256((folder / name).read_bytes()) == digest for name, digest in hashes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _copy(source: Path, target: Path, folder: Path) -> bool:
    """Copies a whole run, its manifest last; False, and nothing is copied, if the source does not hold it."""
    if not intact(source / folder):
        return False
    for name in (*read_json(source / folder / "manifest.json")["files"], "manifest.json"):
        write_bytes(target / folder / name, (source / folder / name).read_bytes())
    return True


def _check(folder: Path) -> None:
    if not intact(folder):
        raise BadInput(f"{folder} is not a whole run: a file is missing or was changed. Run the audit again.")


def load(folder: Path, kind: type[T]) -> T:
    """The result in a run's folder as `kind`, its method's Result."""
    _check(folder)
    arrays: dict[str, np.ndarray] = {}
    if (folder / "arrays.safetensors").exists():
        from safetensors.numpy import load_file

        arrays = load_file(folder / "arrays.safetensors")
    tables = _from_parquet(folder / "tables.parquet") if (folder / "tables.parquet").exists() else {}
    return decode(kind, Encoded(read_json(folder / "result.json"), arrays, tables))


def figures(folder: Path) -> Figures:
    """The numbers of the run in `folder` with their replicates; its other arrays and its tables are not read."""
    _check(folder)
    body = read_json(folder / "result.json")
    arrays: dict[str, np.ndarray] = {}
    if (folder / "arrays.safetensors").exists():
        from safetensors import safe_open

        with safe_open(folder / "arrays.safetensors", framework="numpy") as opened:
            arrays = {name: opened.get_tensor(name) for name in opened.keys() if name.endswith("/replicates")}  # noqa: SIM118 - not a dict
    return decode(Figures, Encoded(body, arrays, {}))


def _moved(source: Path | None, folder: Path) -> dict[str, str]:
    """Moves a folder's files to `folder/files`; gives their names and hashes."""
    hashes: dict[str, str] = {}
    if source is None or not source.is_dir():
        return hashes
    for path in sorted(source.iterdir()):
        place = folder / "files" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, place)
        with place.open("rb") as stream:
            hashes[f"files/{path.name}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashes


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _to_parquet(tables: dict[str, Columns]) -> bytes:
    """All tables in one file: the column `table` says which, other columns are null where a table lacks them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = []
    for name, table in sorted(tables.items()):
        columns: dict[str, Any] = {"table": pa.array([name] * len(table), pa.string())}
        columns |= {key: pa.array(values) for key, values in table.data.items()}
        parts.append(pa.table(columns))
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(parts, promote_options="default"), sink)
    return sink.getvalue()


def _from_parquet(path: Path) -> dict[str, Columns]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = pq.read_table(path)
    names = whole["table"].to_pylist()
    found = {}
    for name in dict.fromkeys(names):
        part = whole.filter(pa.array([one == name for one in names])).drop_columns(["table"])
        found[name] = Columns({c: _column(part[c].combine_chunks()) for c in part.column_names})
    return found


def _column(array: Any) -> np.ndarray | list[str]:
    import pyarrow as pa

    if pa.types.is_string(array.type):
        return array.to_pylist()
    return array.to_numpy(zero_copy_only=False)
