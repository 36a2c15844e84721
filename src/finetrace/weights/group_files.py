"""Groups of weights in files: which weights, never their scores, for the owner of the machine alone (mode 0600).

A folder holds one file for each group and `groups.json`, which names them and is written last: a folder without it is
not finished. Small groups are JSON that reads as seed 003's does, lists of [row, column]; large ones are safetensors of
flat ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import whole_file, write_json
from finetrace.weights.groups import Group, Shapes, Unit

INDEX = "groups.json"
MODE = 0o600
# More places than this, over all groups, go to safetensors: as JSON they would be hundreds of megabytes at 7B.
_SMALL = 200_000
_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,63}")
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Saved:
    """shapes: module -> (out, in). meta: what was said about the groups when they were saved."""

    groups: dict[str, Group]
    shapes: dict[str, tuple[int, int]]
    meta: dict[str, Any]


def save(
    folder: Path,
    groups: Sequence[Group],
    meta: Mapping[str, Any] | None = None,
    *,
    shapes: Shapes,
    compact: bool | None = None,
) -> Path:
    """Writes the groups, and gives their index. shapes: of the matrices that they are of. compact: None decides by size.

    A crash at any moment leaves no index or a whole one.
    """
    if compact is None:
        compact = sum(len(group) for group in groups) > _SMALL
    for group in groups:
        _require(group, shapes)
    if len({group.name for group in groups}) < len(groups):
        raise BadInput("Two groups have one name: each is a file of its own.")
    index = folder / INDEX
    index.unlink(missing_ok=True)
    listed = [_write(folder, group, shapes, compact) for group in groups]
    said = {
        "format": _FORMAT,
        "meta": dict(meta or {}),
        "shapes": {module: list(shape) for module, shape in shapes.items()},
        "groups": listed,
    }
    write_json(index, said, mode=MODE)
    return index


def load(folder: Path) -> Saved:
    """What was saved. Anything that is not as `save` writes it is a DataError: ids are used as indices."""
    index = _read(folder / INDEX, "groups were never saved here, or not to the end")
    said = _json(index, folder / INDEX)
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise DataError(f"{folder / INDEX} is no index of groups of format {_FORMAT}.")
    shapes, meta, listed = said.get("shapes"), said.get("meta"), said.get("groups")
    if not (isinstance(shapes, dict) and isinstance(meta, dict) and isinstance(listed, list)):
        raise DataError(f"{folder / INDEX} lacks shapes, meta or groups.")
    known = {module: _shape(shape, module) for module, shape in shapes.items()}
    groups = [_load(folder, entry, known) for entry in listed]
    found = {group.name: group for group in groups}
    if len(found) < len(groups):
        raise DataError(f"{folder / INDEX} lists a group twice.")
    return Saved(found, known, meta)


def _require(group: Group, shapes: Shapes) -> None:
    if not _NAME.fullmatch(group.name) or f"{group.name}.json" == INDEX:
        raise BadInput(
            f"A group cannot be saved as '{group.name}': lower-case letters, digits and _ only, and not 'groups'."
        )
    for module, ids in group.places.items():
        if module not in shapes:
            raise BadInput(f"The shape of {module}, which {group.name} has places in, was not given.")
        _check(ids, shapes[module], group.unit, f"{group.name}, {module}", BadInput)


def _check(ids: Tensor, shape: tuple[int, int], unit: str, where: str, error: type[BadInput]) -> None:
    end = shape[0] if unit == "rows" else shape[0] * shape[1]
    if ids.ndim != 1 or ids.dtype != torch.int64:
        raise error(f"{where}: places are one list of int64, not {ids.dtype} {tuple(ids.shape)}.")
    if not len(ids):
        return
    if int(ids[0]) < 0 or int(ids[-1]) >= end or not bool((ids[1:] > ids[:-1]).all()):
        raise error(f"{where}: places are not ascending ids from 0 to {end - 1}, each once.")


def _write(folder: Path, group: Group, shapes: Shapes, compact: bool) -> dict[str, Any]:
    path = folder / f"{group.name}.{'safetensors' if compact else 'json'}"
    if compact:
        from safetensors.torch import save_file

        small = {module: narrow(ids) for module, ids in group.places.items()}
        with whole_file(path, mode=MODE) as temporary:
            save_file(small, temporary)
    else:
        places = {module: _listed(group, module, shapes[module]) for module in group.places}
        text = json.dumps({"name": group.name, "unit": group.unit, "places": places}, indent=1)
        with whole_file(path, mode=MODE) as temporary:
            temporary.write_text(_on_one_line(text) + "\n", encoding="utf-8")
    return {
        "name": group.name,
        "unit": group.unit,
        "places": len(group),
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def narrow(ids: Tensor) -> Tensor:
    """Ids of any shape in 4 bytes each where all of them go, else in 8."""
    small = not ids.numel() or int(ids.max()) < 2**31
    return ids.to(torch.int32 if small else torch.int64).contiguous()


def _listed(group: Group, module: str, shape: tuple[int, int]) -> list[Any]:
    rows, columns = group.rows_columns(module, shape)
    return rows.tolist() if columns is None else torch.stack([rows, columns], 1).tolist()


def _on_one_line(text: str) -> str:
    """[row, column] on a line of its own."""
    return re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text)


def _read(path: Path, absent: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no {path}: {absent}.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not readable JSON.") from None


def _shape(shape: Any, module: str) -> tuple[int, int]:
    if not (
        isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 < n < 2**31 for n in shape)
    ):
        raise DataError(f"The shape of {module} is not two positive whole numbers.")
    return shape[0], shape[1]


def _load(folder: Path, entry: Any, shapes: Shapes) -> Group:
    if (
        not isinstance(entry, dict)
        or not isinstance(name := entry.get("name"), str)
        or not _NAME.fullmatch(name)
    ):
        raise DataError(f"{folder / INDEX} lists a group without a usable name.")
    unit: Unit | None = next((known for known in get_args(Unit) if known == entry.get("unit")), None)
    file = entry.get("file")
    if unit is None or file not in (f"{name}.json", f"{name}.safetensors") or file == INDEX:
        raise DataError(f"{folder / INDEX}: the unit or file of {name} is none that is written.")
    path = folder / file
    data = _read(path, f"it holds the group {name}")
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise DataError(f"{path} is not the file that {INDEX} is of: save the groups anew.")
    places = (
        _from_json(data, path, name, unit, shapes) if file.endswith("json") else _from_tensors(data, path)
    )
    for module, ids in places.items():
        if module not in shapes:
            raise DataError(f"{path} has places in {module}, of which no shape is known.")
        _check(ids, shapes[module], unit, f"{path}, {module}", DataError)
    group = Group(name, unit, places)
    if len(group) != entry.get("places"):
        raise DataError(f"{path} has {len(group)} places and {INDEX} says {entry.get('places')}.")
    return group


def _from_json(data: bytes, path: Path, name: str, unit: str, shapes: Shapes) -> dict[str, Tensor]:
    said = _json(data, path)
    places = said.get("places") if isinstance(said, dict) else None
    if (
        not isinstance(said, dict)
        or not isinstance(places, dict)
        or (said.get("name"), said.get("unit")) != (name, unit)
    ):
        raise DataError(f"{path} is not the group {name} of {unit}.")
    return {module: _flat(listed, module, unit, shapes, path) for module, listed in places.items()}


def _flat(listed: Any, module: str, unit: str, shapes: Shapes, path: Path) -> Tensor:
    shape = shapes.get(module)
    if not isinstance(listed, list) or shape is None:
        raise DataError(f"{path}: {module} is no list of places, or its shape is not known.")
    if unit == "rows":
        return _numbers(listed, path, module)
    for place in listed:
        if not isinstance(place, list) or len(place) != 2:
            raise DataError(f"{path}: a place of {module} is not [row, column].")
    flat = _numbers([number for place in listed for number in place], path, module).reshape(-1, 2)
    if len(flat) and int(flat[:, 1].max()) >= shape[1]:
        raise DataError(f"{path}: a column of {module} is beyond its {shape[1]}.")
    return flat[:, 0] * shape[1] + flat[:, 1]


def _numbers(listed: list[Any], path: Path, module: str) -> Tensor:
    if not all(type(number) is int and 0 <= number < 2**31 for number in listed):
        raise DataError(f"{path}: the places of {module} are not all whole numbers from 0.")
    return torch.tensor(listed, dtype=torch.int64)


def _from_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found = load(data)
    except (SafetensorError, ValueError, KeyError):
        raise DataError(f"{path} is not a whole safetensors file.") from None
    for module, ids in found.items():
        if ids.dtype not in (torch.int32, torch.int64):
            raise DataError(f"{path}: the places of {module} are {ids.dtype}, not whole numbers.")
    return {module: ids.to(torch.int64) for module, ids in found.items()}
