"""A safetensors file written piece by piece and hashed as it is written, and mapped into memory when it is read.

The library's own writer joins and copies every tensor first, which doubles the memory of a shard, and the checksum would
take a second reading. The format is its: 8 bytes of header length, a JSON header, then the tensors, widest type first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetrace.core.errors import DataError
from finetrace.core.files import whole_file

__all__ = ["Written", "mapped", "sha256_of", "write"]

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
}


@dataclass(frozen=True)
class Written:
    """size: bytes. sha256: of the whole file, in hex."""

    size: int
    sha256: str


def write(path: Path, tensors: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, str]) -> Written:
    """Each tensor is given in pieces that are joined along their first axis. OSError as the disk gives it."""
    names = sorted(tensors, key=lambda name: (-tensors[name][0].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        pieces = tensors[name]
        shape = [sum(len(piece) for piece in pieces), *pieces[0].shape[1:]]
        start, end = end, end + prod(shape) * pieces[0].element_size()
        header[name] = {"dtype": _NAMES[pieces[0].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that what follows is aligned
    digest = hashlib.sha256()
    with whole_file(path) as temporary, temporary.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in names:
            for piece in tensors[name]:
                part = piece.contiguous().reshape(-1).view(torch.uint8).numpy().data
                digest.update(part)
                file.write(part)
        file.flush()
    return Written(8 + len(text) + end, digest.hexdigest())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mapped(path: Path) -> dict[str, Tensor]:
    """Every tensor of the file, read from the disk only where it is touched; changes stay in memory."""
    try:
        opened = safe_open(path, framework="pt")
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} is cut short, damaged or no safetensors file: {error}.") from None
