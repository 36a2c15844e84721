"""Results on disk: a frozen dataclass as JSON, its arrays in safetensors, its tables in Parquet, and back, exactly.

A result's field may be a scalar, None, tuple, dict with string keys, frozen dataclass, numpy array or `Columns`.
"""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from finetrace.core.errors import FinetraceError


@dataclass(frozen=True)
class Columns:
    """A table of equally long columns, kept in Parquet: name -> numpy array or list of strings."""

    data: dict[str, np.ndarray | list[str]]

    def __len__(self) -> int:
        return len(next(iter(self.data.values()), ()))


@dataclass(frozen=True)
class Encoded:
    """A result taken apart: `body` is strict JSON that refers to `arrays` and `tables` by name."""

    body: Any
    arrays: dict[str, np.ndarray]
    tables: dict[str, Columns]


def encode(result: Any) -> Encoded:
    """Takes a result apart. NaN and infinities in scalars are errors: "no data" is None."""
    arrays: dict[str, np.ndarray] = {}
    tables: dict[str, Columns] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Columns):
            tables[path] = value
            return {"$table": path, "columns": list(value.data)}
        if isinstance(value, np.ndarray):
            arrays[path] = np.ascontiguousarray(value)
            return {"$array": path}
        if isinstance(value, np.generic):
            return walk(value.item(), path)
        if is_dataclass(value):
            return {f.name: walk(getattr(value, f.name), f"{path}/{f.name}") for f in fields(value)}
        if isinstance(value, dict):
            return {str(k): walk(v, f"{path}/{k}") for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        if isinstance(value, float) and not np.isfinite(value):
            raise FinetraceError(f"{path} is {value}: a result says None where there is no number")
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise FinetraceError(f"{path} is a {type(value).__name__}, which a result cannot hold")

    return Encoded({f.name: walk(getattr(result, f.name), f.name) for f in fields(result)}, arrays, tables)


def decode(kind: type, encoded: Encoded) -> Any:
    """Puts a result of type `kind` together again: decode(type(r), encode(r)) == r."""

    def build(hint: Any, value: Any) -> Any:
        if isinstance(value, dict) and "$array" in value:
            return encoded.arrays[value["$array"]]
        if isinstance(value, dict) and "$table" in value:
            return _pick(encoded.tables.get(value["$table"]), value["columns"])
        if value is None:
            return None
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return build(next(a for a in arguments if a is not type(None)), value)
        if origin is tuple:
            inner = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
            return tuple(build(h, v) for h, v in zip(inner, value, strict=True))
        if origin is list:
            return [build(arguments[0], v) for v in value]
        if origin is dict:
            return {k: build(arguments[1], v) for k, v in value.items()}
        if is_dataclass(hint) and isinstance(hint, type):
            return build_dataclass(hint, value)
        return float(value) if hint is float and isinstance(value, int) else value

    def build_dataclass(cls: type, values: dict[str, Any]) -> Any:
        # Estimate names numpy only for type checkers, so that cards stay light; its hints need the name here.
        hints = typing.get_type_hints(cls, localns={"np": np})
        return cls(**{f.name: build(hints[f.name], values[f.name]) for f in fields(cls)})

    return build_dataclass(kind, encoded.body)


def _pick(table: Columns | None, names: list[str]) -> Columns:
    """A table's own columns; one without rows leaves no trace in the file."""
    return Columns({name: table.data[name] if table else [] for name in names})
