"""What a cache of activations holds and is made from, and the folder that this gives it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import read_json
from finetrace.core.runkey import canonical, run_key
from finetrace.store.keys import differences, said

__all__ = ["DTYPES", "KEY", "LOCK", "MANIFEST", "SHARDS", "VERSION", "Layout", "Where", "folder_of"]

VERSION = 1
KEY, MANIFEST, SHARDS, LOCK = "key.json", "manifest.json", "shards.jsonl", ".lock"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
WHERE = {"row": torch.int64, "position": torch.int32, "role": torch.int8, "slice": torch.int16}


@dataclass(frozen=True)
class Layout:
    """layers: block indices. width: d_model. slices: names, by code. models: 2 for (base, tuned), 1 for a difference."""

    layers: tuple[int, ...]
    width: int
    slices: tuple[str, ...]
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    models: int = 2

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadInput(f"Activations are stored as {' or '.join(DTYPES)}, not {self.dtype}.")
        if not self.layers or sorted(set(self.layers)) != list(self.layers):
            raise BadInput(f"Layers to store are rising and at least one, not {list(self.layers)}.")
        if self.width < 1 or self.models < 1:
            raise BadInput(
                f"There are no activations of {self.models} models with {self.width} numbers a token."
            )

    def bytes(self, rows: int) -> int:
        """On the disk, headers apart."""
        states = len(self.layers) * self.models * self.width * DTYPES[self.dtype].itemsize
        return rows * (states + sum(dtype.itemsize for dtype in WHERE.values()))

    def tensors(self, rows: int) -> dict[str, tuple[list[int], torch.dtype]]:
        """Name -> shape and dtype of what a shard of `rows` holds."""
        states = ([rows, self.models, self.width], DTYPES[self.dtype])
        return {
            **{layer_name(layer): states for layer in self.layers},
            **{name: ([rows], dtype) for name, dtype in WHERE.items()},
        }


@dataclass(frozen=True)
class Where:
    """Where each row of activations is from. row: index in the corpus; position: of the token in it; role: of the token, as
    in data/roles.py; slice: a code, see Layout.slices."""

    row: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    role: Int[Tensor, " row"]
    slice: Int[Tensor, " row"]

    def __len__(self) -> int:
        return len(self.row)


def layer_name(layer: int) -> str:
    return f"layer.{layer}"


def described(made_of: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """The whole key, as JSON reads it back."""
    return json.loads(canonical({"version": VERSION, "made_of": dict(made_of), "layout": asdict(layout)}))


def folder_of(root: Path, made_of: Mapping[str, Any], layout: Layout) -> Path:
    return root / run_key(described(made_of, layout))


def read_key(folder: Path) -> dict[str, Any]:
    """What the cache in `folder` is made from. FileNotFoundError where there is none."""
    try:
        found = read_json(folder / KEY)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("layout"), dict):
        raise DataError(f"{folder / KEY} is damaged: delete the folder and store the activations again.")
    if found.get("version") != VERSION:
        raise DataError(
            f"{folder} was written in version {found.get('version')} of the format, and this reads version {VERSION}: "
            "store the activations again."
        )
    return found


def check_key(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """DataError if the cache in `folder` is of something else."""
    found = differences(there, asked)
    if found:
        raise DataError(f"{folder} holds activations of something else: {said(found)}.")


def holding(root: Path, asked: Mapping[str, Any]) -> list[Path]:
    """Folders of caches in `root` of what was asked for and perhaps of more layers, those of fewest layers first."""
    found: list[tuple[int, Path]] = []
    for path in sorted(root.glob(f"*/{KEY}")):
        try:
            there = read_key(path.parent)
        except (OSError, DataError):
            continue
        if not differences(there, with_layers_of(asked, there)):
            found.append((len(there["layout"]["layers"]), path.parent))
    return [folder for _, folder in sorted(found)]


def begun(root: Path, made_of: Mapping[str, Any], layout: Layout) -> Layout:
    """The layout of a cache in `root` of this that is there already, finished or not and perhaps of more layers; else `layout`."""
    folders = holding(root, described(made_of, layout))
    return layout_from(read_key(folders[0])["layout"], folders[0]) if folders else layout


def with_layers_of(asked: Mapping[str, Any], there: Mapping[str, Any]) -> Mapping[str, Any]:
    """The key that was asked for, with all the layers that are there if those asked for are among them."""
    layers = there["layout"].get("layers")
    if not isinstance(layers, list) or not all(layer in layers for layer in asked["layout"]["layers"]):
        return asked
    return {**asked, "layout": {**asked["layout"], "layers": layers}}


def nearest(root: Path, asked: Mapping[str, Any]) -> str:
    """The cache in `root` that differs least from what was asked for, as a sentence; "" if there is none."""
    best: tuple[int, str] | None = None
    for path in sorted(root.glob(f"*/{KEY}")):
        try:
            found = differences(read_key(path.parent), asked)
        except (OSError, DataError):
            continue
        if best is None or len(found) < best[0]:
            best = len(found), f" The nearest there, {path.parent.name}, differs in {said(found)}."
    return best[1] if best else ""


def layout_from(found: Mapping[str, Any], folder: Path) -> Layout:
    try:
        return Layout(
            tuple(int(layer) for layer in found["layers"]),
            int(found["width"]),
            tuple(str(name) for name in found["slices"]),
            found["dtype"],
            int(found["models"]),
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{folder / KEY} is damaged: delete the folder and store the activations again."
        ) from None
