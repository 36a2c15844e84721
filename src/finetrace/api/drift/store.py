"""Groups on disk: places of weights only, never their scores, readable by their owner alone.

`neuron_groups/` holds the reported groups and their index as `group_files` writes them, and beside them `controls.safetensors`,
the sides of all comparisons with their pairs, and `design.json`, what is compared; the design is written last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.core.estimate import Estimate
from finetrace.core.files import read_json, whole_file, write_json
from finetrace.methods.neuron_drift.analysis import Contrast
from finetrace.methods.neuron_drift.grouping import REPORTED, Grouped, Picked
from finetrace.methods.neuron_drift.result import Reliability
from finetrace.weights import group_files
from finetrace.weights.controls import Matched
from finetrace.weights.groups import Group

__all__ = ["load_groups", "load_picked", "save_groups", "save_picked"]

PICKED = "picked.safetensors"
CONTROLS, DESIGN = "controls.safetensors", "design.json"
_META = "finetrace"


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
    group_files.save(folder, [found.groups[name] for name in REPORTED], shapes=found.shapes)
    sides = [group for name, group in found.groups.items() if name not in REPORTED]
    tensors = _tensors("side", sides)
    for (group, kind), matched in found.matched.items():
        for module, pairs in matched.pairs.items():
            tensors[f"pairs|{group}/{kind}|{module}"] = group_files.narrow(pairs)
    _write(folder / CONTROLS, tensors, {"sides": [group.name for group in sides]})
    design = {
        "schema": 2,
        "contrasts": [asdict(one) for one in found.contrasts],
        "matched": [list(key) for key in found.matched],
        "reliability": [asdict(one) for one in found.reliability],
        "overlap": {"value": found.overlap.value, "unit": found.overlap.unit, "n": found.overlap.n},
    }
    write_json(folder / DESIGN, design, mode=group_files.MODE)


def load_groups(folder: Path) -> Grouped | None:
    """What `save_groups` wrote; None where it is not whole."""
    if not (folder / DESIGN).is_file():
        return None
    design = read_json(folder / DESIGN)
    try:
        saved = group_files.load(folder)
    except DataError as error:
        raise _damaged(folder, error) from error
    tensors, meta = _read(folder / CONTROLS)
    groups = saved.groups | _groups("side", meta["sides"], tensors)
    contrasts = tuple(Contrast(**one) for one in design["contrasts"])
    wanted = {tuple(key) for key in design["matched"]}
    return Grouped(
        groups=groups,
        contrasts=contrasts,
        matched={one.key: _matched(one, groups, tensors) for one in contrasts if one.key in wanted},
        reliability=tuple(Reliability(**one) for one in design["reliability"]),
        overlap=Estimate(**design["overlap"], clusters=None),
        shapes=saved.shapes,
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


def _tensors(prefix: str, groups: Iterable[Group]) -> dict[str, Tensor]:
    return {
        f"{prefix}|{group.name}|{module}": group_files.narrow(ids)
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


def _write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    with whole_file(path, mode=group_files.MODE) as temporary:
        save_file(dict(tensors), temporary, metadata={_META: json.dumps(meta)})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            meta = json.loads((stream.metadata() or {})[_META])
            return {key: stream.get_tensor(key) for key in stream.keys()}, meta  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BadInput:
    folder = path if path.is_dir() else path.parent
    why = str(error).rstrip(".")
    return BadInput(
        f"{path} is damaged ({why}): delete the folder {folder} and run the phases `scores` and `groups` again."
    )
