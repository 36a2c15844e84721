"""A shelf as one table, for those who go on elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finetrace.core.files import write_bytes
from finetrace.core.shelf_index import RESULT, Entry

# Column -> what it is in Parquet; integers are whole, so that a missing one is null and not NaN.
COLUMNS = {
    "base": "string", "organism": "string", "variant": "string", "method": "string", "version": "int64",
    "contrast": "string", "scale": "double", "key": "string", "created": "string", "slice": "string", "number": "string",
    "value": "double", "unit": "string", "n": "int64", "clusters": "int64", "low": "double", "high": "double",
    "folder": "string",
}  # fmt: skip


def write_parquet(path: Path, root: Path, found: Sequence[Entry]) -> int:
    """One row a run, number and slice (null: over all slices); returns how many. A result that was changed after its run
    has none. The file is whole or absent."""
    rows = [row for entry in found for row in rows_of(root, entry)]
    write_table(path, rows, COLUMNS)
    return len(rows)


def write_table(path: Path, rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), sink)
    write_bytes(path, sink.getvalue())


def rows_of(root: Path, entry: Entry) -> Iterator[dict[str, Any]]:
    manifest = entry.manifest
    told = {
        "base": entry.base, "organism": entry.tuned, "variant": entry.variant, "method": entry.method,
        "version": manifest.get("version"), "contrast": entry.contrast, "scale": manifest.get("scale"), "key": entry.key,
        "created": entry.created, "folder": entry.folder,
    }  # fmt: skip
    body = _body(root / entry.folder / RESULT, manifest["files"].get(RESULT))
    tables = [(None, body.get("numbers") or {}), *(body.get("slices") or {}).items()]
    for name, numbers in tables:
        for key, one in numbers.items():
            figure = {field: one.get(field) for field in ("value", "unit", "n", "clusters", "low", "high")}
            yield told | {"slice": name, "number": key} | figure


def _body(path: Path, digest: str | None) -> dict[str, Any]:
    """The result, if it is what the manifest vouches for."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    return json.loads(data) if hashlib.sha256(data).hexdigest() == digest else {}
