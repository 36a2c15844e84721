"""Groups on disk: places of weights only, never their scores, readable by their owner alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.estimate import Estimate
from finetrace.core.files import read_json, whole_file, write_json
from finetrace.methods.neuron_drift.analysis import Contrast
from finetrace.methods.neuron_drift.grouping import REPORTED, Grouped, Picked
from finetrace.methods.neuron_drift.result import Reliability
from finetrace.weights.controls import Matched
from finetrace.weights.groups import Group

__all__ = ["load_groups", "load_picked", "save_groups", "save_picked"]

PICKED = "picked.safetensors"
CONTROLS, DESIGN = "controls.safetensors", "design.json"
_PRIVATE = 0o600
_META = "finetrace"
# Up to so many places a group is written as [row, column], as seed 003 does; beyond, as numbers of 4 or 8 bytes.
_READABLE = 200_000


def save_picked(path: Path, found: Picked) -> None:
    """What the scores chose, with the norms of every matrix's inputs, by which controls are matched."""
    tensors = _tensors("all", found.groups.values())
    for number, half in enumerate(found.halves):
        tensors |= _tensors(f"half{number}", half.values())
    tensors |= {f"columns|{module}": norms.float() for module, norms in found.columns.items()}
    meta = {"shapes": found.shapes, "samples": found.samples, "groups": list(found.groups)}
    _write(path, tensors, meta)


def load_picked(path: Path) -> Picked | None:
    """What `save_picked` wrote; None where it is not there."""
    if not path.is_file():
        return None
    tensors, meta = _read(path)
    shapes = {module: (int(shape[0]), int(shape[1])) for module, shape in meta["shapes"].items()}
    names = meta["groups"]
    return Picked(
        groups=_groups("all", names, tensors),
        halves=(_groups("half0", names, tensors), _groups("half1", names, tensors)),
        columns={key.partition("|")[2]: t for key, t in tensors.items() if key.startswith("columns|")},
        shapes=shapes,
        samples=int(meta["samples"]),
    )


def save_groups(folder: Path, found: Grouped) -> None:
    """The reported groups, a file each; the sides of all comparisons; and, last, what they are and how reliable."""
    for name in REPORTED:
        _write_group(folder, found.groups[name], found.shapes)
    sides = [group for name, group in found.groups.items() if name not in REPORTED]
    tensors = _tensors("side", sides)
    for (group, kind), matched in found.matched.items():
        for module, pairs in matched.pairs.items():
            tensors[f"pairs|{group}/{kind}|{module}"] = _narrow(pairs)
    _write(folder / CONTROLS, tensors, {"sides": [group.name for group in sides]})
    design = {
        "schema": 1,
        "shapes": found.shapes,
        "contrasts": [asdict(one) for one in found.contrasts],
        "matched": [list(key) for key in found.matched],
        "reliability": [asdict(one) for one in found.reliability],
        "overlap": {"value": found.overlap.value, "unit": found.overlap.unit, "n": found.overlap.n},
    }
    write_json(folder / DESIGN, design, mode=_PRIVATE)


def load_groups(folder: Path) -> Grouped | None:
    """What `save_groups` wrote; None where it is not whole."""
    if not (folder / DESIGN).is_file():
        return None
    design = read_json(folder / DESIGN)
    shapes = {module: (int(shape[0]), int(shape[1])) for module, shape in design["shapes"].items()}
    tensors, meta = _read(folder / CONTROLS)
    groups = {name: _read_group(folder, name, shapes) for name in REPORTED}
    groups |= _groups("side", meta["sides"], tensors)
    contrasts = tuple(Contrast(**one) for one in design["contrasts"])
    wanted = {tuple(key) for key in design["matched"]}
    return Grouped(
        groups=groups,
        contrasts=contrasts,
        matched={one.key: _matched(one, groups, tensors) for one in contrasts if one.key in wanted},
        reliability=tuple(Reliability(**one) for one in design["reliability"]),
        overlap=Estimate(**design["overlap"], clusters=None),
        shapes=shapes,
    )


def _matched(contrast: Contrast, groups: Mapping[str, Group], tensors: Mapping[str, Tensor]) -> Matched:
    prefix = f"pairs|{contrast.group}/{contrast.kind}|"
    pairs = {key.removeprefix(prefix): t.long() for key, t in tensors.items() if key.startswith(prefix)}
    return Matched(
        treated=groups[contrast.treated],
        control=groups[contrast.control],
        rate=contrast.rate,
        balance=contrast.balance,
        before={},
        pairs=pairs,
        strata={},
    )


def _write_group(folder: Path, group: Group, shapes: Mapping[str, tuple[int, int]]) -> None:
    """One group: JSON of [row, column] by matrix where it is small, else safetensors of flat ids."""
    json_path, packed = folder / f"{group.name}.json", folder / f"{group.name}.safetensors"
    if len(group) > _READABLE:
        json_path.unlink(missing_ok=True)
        _write(packed, _tensors("all", [group]), {"groups": [group.name]})
        return
    packed.unlink(missing_ok=True)
    places = {
        module: torch.stack([ids // shapes[module][1], ids % shapes[module][1]], 1).tolist()
        for module, ids in group.places.items()
    }
    with whole_file(json_path, mode=_PRIVATE) as path:
        path.write_text(json.dumps({"name": group.name, "places": places}), encoding="utf-8")


def _read_group(folder: Path, name: str, shapes: Mapping[str, tuple[int, int]]) -> Group:
    path = folder / f"{name}.json"
    if not path.is_file():
        tensors, _ = _read(folder / f"{name}.safetensors")
        return _groups("all", [name], tensors)[name]
    places = {}
    for module, pairs in read_json(path)["places"].items():
        found = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        places[module] = found[:, 0] * shapes[module][1] + found[:, 1]
    return Group(name, "entries", places)


def _tensors(prefix: str, groups: Iterable[Group]) -> dict[str, Tensor]:
    return {
        f"{prefix}|{group.name}|{module}": _narrow(ids)
        for group in groups
        for module, ids in group.places.items()
    }


def _groups(prefix: str, names: Iterable[str], tensors: Mapping[str, Tensor]) -> dict[str, Group]:
    found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for key, ids in tensors.items():
        part, name, *module = key.split("|")
        if part == prefix and name in found:
            found[name][module[0]] = ids.long()
    return {name: Group(name, "entries", places) for name, places in found.items()}


def _narrow(ids: Tensor) -> Tensor:
    """In 4 bytes where they go."""
    small = not ids.numel() or int(ids.max()) < 2**31
    return ids.to(torch.int32 if small else torch.int64).contiguous()


def _write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    with whole_file(path, mode=_PRIVATE) as temporary:
        save_file(dict(tensors), temporary, metadata={_META: json.dumps(meta)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            meta = json.loads((stream.metadata() or {})[_META])
            return {key: stream.get_tensor(key) for key in stream.keys()}, meta  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise BadInput(
            f"{path} is damaged ({error}): delete the folder {path.parent} and run the phase `groups` again."
        ) from error
