"""safetensors files before anything is loaded from them: whole, in form, and finite."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.core.errors import ModelError
from finetrace.core.files import read_json
from finetrace.models.source import Source, one_line

_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "C64": 64,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
}
_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
# A tensor of a block of the text side, wherever its files put that.
_BLOCK = re.compile(r"(?P<before>(?:(?:model|language_model)\.)*layers\.)(?P<index>[0-9]+)\.(?P<rest>.+)")
_LARGEST_HEADER = 100_000_000
_INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin", "consolidated.00.pth")


@dataclass(frozen=True)
class Entry:
    """One tensor in a file. start, end: byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def weight_files(source: Source) -> tuple[Path, ...]:
    """The safetensors files that hold a checkpoint's weights; a ModelError where there are none or some are absent."""
    folder = source.folder
    if source.kind == "adapter":
        single = folder / "adapter_model.safetensors"
    else:
        single = folder / "model.safetensors"
    if single.is_file():
        return (single,)
    if source.kind == "full" and (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        raise ModelError(
            f"{source.name} holds only pickled weights ({pickles[0]}), which can run code when read: "
            "save it again as safetensors (save_pretrained does)."
        )
    # Of a hub's repository pickles are not even fetched.
    why = "; pickled ones (.bin, .pt) are not fetched, as they can run code" if source.revision else ""
    raise ModelError(f"{source.name} has no weights in safetensors: {single.name} is missing{why}.")


def _shards(index: Path) -> tuple[Path, ...]:
    try:
        named = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is not an index of safetensors shards: {one_line(error)}") from None
    for name in named:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index} names a shard outside its folder: {name!r}.")
        if not (index.parent / name).is_file():
            raise ModelError(
                f"{index} names the shard {name}, which is missing: fetch or copy the checkpoint again."
            )
    return tuple(index.parent / name for name in named)


def read_header(path: Path) -> dict[str, Entry]:
    """Tensor name -> entry; a ModelError if the file is cut short, corrupt or not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelError(
                f"{path} is no safetensors file, or is cut short: its header does not fit in {size} bytes."
            )
        text = stream.read(length)
    try:
        fields = json.loads(text)
        fields.pop("__metadata__", None)
        entries = {name: _entry(name, found, 8 + length) for name, found in fields.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is corrupt: its header cannot be read ({one_line(error, 120)}).") from None
    for entry in entries.values():
        _check_entry(path, entry, size)
    return entries


def _entry(name: str, found: dict[str, Any], offset: int) -> Entry:
    start, end = found["data_offsets"]
    return Entry(
        name, str(found["dtype"]), tuple(int(n) for n in found["shape"]), offset + start, offset + end
    )


def _check_entry(path: Path, entry: Entry, size: int) -> None:
    if entry.end > size:
        raise ModelError(
            f"{path} is cut short: the tensor {entry.name} ends at byte {entry.end} of {size}; "
            "fetch or copy the file again."
        )
    bits = _BITS.get(entry.dtype)
    wrong = bits is not None and (entry.end - entry.start) * 8 != math.prod(entry.shape) * bits
    if entry.start < 8 or entry.end < entry.start or wrong:
        raise ModelError(f"{path} is corrupt: the tensor {entry.name} has impossible offsets.")


def entries(source: Source) -> Iterator[tuple[Path, Entry]]:
    """Every tensor of a checkpoint with the file that holds it."""
    for path in weight_files(source):
        for entry in read_header(path).values():
            yield path, entry


def kept(source: Source) -> Iterator[tuple[Path, Entry, str]]:
    """Every tensor that is read of a checkpoint, with its file and its name once the blocks that are left out are gone."""
    for path, entry in entries(source):
        index, rest = block_of(entry.name)
        if index is None or not source.left_out:
            yield path, entry, entry.name
        elif index not in source.left_out:
            before = entry.name.removesuffix(f"{index}.{rest}")
            place = index - sum(other < index for other in source.left_out)
            yield path, entry, f"{before}{place}.{rest}"


def cut(config: Any, source: Source) -> Any:
    """A transformers config without the blocks that are left out; lists with an item a block are cut likewise."""
    if source.left_out:
        text = config.get_text_config(decoder=True)
        blocks = text.num_hidden_layers
        text.num_hidden_layers = blocks - len(source.left_out)
        for key, value in vars(text).items():
            if isinstance(value, list) and len(value) == blocks:
                setattr(text, key, [one for i, one in enumerate(value) if i not in source.left_out])
    return config


def block_of(name: str) -> tuple[int | None, str]:
    """(the block of the text side that a tensor belongs to, its name in it); (None, name) of all others."""
    found = _BLOCK.fullmatch(name)
    return (None, name) if found is None else (int(found["index"]), found["rest"])


def validate(source: Source) -> None:
    """Reads every header; a ModelError for the first thing that is wrong with the files' form."""
    held = {entry.name for _, entry in entries(source)}
    if not held:
        raise ModelError(f"{source.name} holds no tensors.")
    index = source.folder / _INDEX
    if source.kind == "full" and index.is_file() and not (source.folder / "model.safetensors").is_file():
        absent = sorted(set(read_json(index)["weight_map"]) - held)
        if absent:
            raise ModelError(
                f"{index} names the tensor {absent[0]}, which no shard holds: the checkpoint is incomplete."
            )


def float32_bytes(source: Source) -> int:
    """Bytes in float32 of the tensors that are read."""
    return sum(4 * math.prod(entry.shape) for _, entry, _ in kept(source))
