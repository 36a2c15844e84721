"""A checkpoint's content hash, and whether all of its weights are finite: one read of the files, remembered."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import digest
from finetrace.models.adapters import read_adapter_config
from finetrace.models.files import Entry, read_header, weight_files
from finetrace.models.source import Source

_BLOCK = 1 << 25
# Exponent bits: all set means Inf or NaN.
_EXPONENT: dict[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
    "F64": (np.uint64, 0x7FF0000000000000),
}
# What of an adapter's configuration changes its numbers.
_ADAPTER_FIELDS = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "fan_in_fan_out",
    "bias",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
)
# What of a model's configuration does not change its numbers.
_INERT_FIELDS = {
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
}


def tensors_identity(source: Source) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in name order: sharding and path do not matter."""
    hashes: dict[str, str] = {}
    for path in weight_files(source):
        hashes |= _scan(path)["tensors"]
    return digest(sorted(hashes.items()))


def identity(source: Source) -> str:
    """SHA-256 of the tensors and of all in the configuration that changes the numbers."""
    if source.kind == "adapter":
        config = read_adapter_config(source)
        settings = {key: _ordered(config.get(key)) for key in _ADAPTER_FIELDS}
    else:
        read = read_json(source.folder / "config.json")
        settings = {key: value for key, value in read.items() if key not in _INERT_FIELDS}
    return digest({"tensors": tensors_identity(source), "config": settings})


def refuse_not_finite(*sources: Source) -> None:
    """A ModelError naming the first tensor that holds NaN or infinity."""
    for source in sources:
        for path in weight_files(source):
            bad = _scan(path)["not_finite"]
            if bad:
                raise ModelError(
                    f"{source.name} holds NaN or infinite weights in {bad[0]} ({path.name}): "
                    "the training diverged or the file is damaged."
                )


def _ordered(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value


def _scan(path: Path) -> dict[str, Any]:
    """{"tensors": name -> hash, "not_finite": names} of one file."""
    place = path.resolve()
    return remembered(place, "scans", lambda: _read(place))


def remembered(path: Path, kind: str, make: Callable[[], Any]) -> Any:
    """What `make` finds in a file (JSON); remembered by path, size and time of change."""
    place = path.resolve()
    stat = place.stat()
    key = digest([str(place), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    memory = _cache_folder() / kind / f"{key}.json"
    if memory.is_file():
        try:
            return read_json(memory)
        except ValueError:
            memory.unlink(missing_ok=True)
    found = make()
    try:
        write_json(memory, found)
    except OSError:
        # A cache that cannot be written costs a second read of the file, nothing else.
        return found
    return found


def _cache_folder() -> Path:
    given = os.environ.get("FINETRACE_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "finetrace"


def _read(path: Path) -> dict[str, Any]:
    hashes: dict[str, str] = {}
    not_finite: list[str] = []
    entries = read_header(path)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        for name in sorted(entries):
            hashes[name], finite = _read_tensor(view, entries[name])
            if not finite:
                not_finite.append(name)
    return {"tensors": hashes, "not_finite": not_finite}


def _read_tensor(view: mmap.mmap, entry: Entry) -> tuple[str, bool]:
    sha = hashlib.sha256(f"{entry.dtype}:{entry.shape}:".encode())
    finite = True
    for block in _blocks(view, entry):
        sha.update(block)
        finite = finite and _finite(block, entry.dtype)
    return sha.hexdigest(), finite


def _blocks(view: mmap.mmap, entry: Entry) -> Iterator[bytes]:
    for start in range(entry.start, entry.end, _BLOCK):
        yield view[start : min(start + _BLOCK, entry.end)]


def _finite(block: bytes, dtype: str) -> bool:
    known = _EXPONENT.get(dtype)
    if known is None:
        return True
    kind, mask = known
    words = np.frombuffer(block, dtype=kind)
    return not bool(((words & kind(mask)) == kind(mask)).any())
