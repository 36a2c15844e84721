"""The run key: the hash of everything that changes the numbers, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; dataclasses as dicts, tuples as lists. NaN is an error."""

    def plain(item: Any) -> Any:
        if is_dataclass(item) and not isinstance(item, type):
            return asdict(item)
        raise TypeError(f"a {type(item).__name__} cannot be part of a run key")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=plain, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def run_key(parts: dict[str, Any]) -> str:
    """20 hex digits that name a run: 80 bits, so that a million runs collide with odds below 1e-12."""
    return digest(parts)[:20]
