"""Files of other tools, read with distrust: sizes first, JSON and safetensors only, every tensor accounted for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetrace.core.errors import BadInput

__all__ = ["LARGEST", "number", "read_config", "read_tensors", "refuse_large", "taken", "whole"]

LARGEST = 32 * 2**30
"""Bytes of weights that are read; a million latents of a 2304-wide model in float32 are 20 GB."""
_LARGEST_CONFIG = 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of at most a megabyte."""
    refuse_large(path, _LARGEST_CONFIG)
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is no JSON that can be read: {error}.") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds a {type(found).__name__}, where a configuration is an object.")
    return found


def read_tensors(path: Path, largest: int = LARGEST) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    refuse_large(path, largest)
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is cut short, corrupt or no safetensors file: {error}.") from None


def refuse_large(path: Path, largest: int) -> None:
    """Raises where a file is absent or of more bytes than `largest`."""
    try:
        size = path.stat().st_size
    except OSError:
        raise BadInput(f"There is no file {path}.") from None
    if size > largest:
        raise BadInput(f"{path} is {size:,} bytes; at most {largest:,} are read: is it the right file?")


def taken(
    found: Mapping[str, Tensor],
    axes: Mapping[str, tuple[str, ...]],
    where: str,
    sizes: Mapping[str, int | None] | None = None,
) -> dict[str, Tensor]:
    """The named tensors in float32, if they are all that was found, finite, and agree on their sizes.

    axes: the names of each tensor's axes; the first tensor that has an axis says its size. sizes: what a configuration says
    of an axis, None where it says nothing. Raises BadInput with all that is wrong.
    """
    problems = list(_problems(found, axes, dict(sizes or {})))
    if problems:
        raise BadInput(f"{where} cannot be read as a dictionary: " + "; ".join(problems) + ".")
    return {name: found[name].float().contiguous() for name in axes}


def _problems(
    found: Mapping[str, Tensor], axes: Mapping[str, tuple[str, ...]], sizes: dict[str, int | None]
) -> Iterator[str]:
    said = dict(sizes)
    missing, unknown = sorted(set(axes) - set(found)), sorted(set(found) - set(axes))
    if missing:
        yield f"it lacks {', '.join(missing)} (it has {', '.join(sorted(found)) or 'nothing'})"
    if unknown:
        yield f"it also holds {', '.join(unknown)}, which this layout has no place for"
    for name in [name for name in axes if name in found]:
        tensor, names = found[name], axes[name]
        if tensor.ndim != len(names):
            yield f"{name} is {[*tensor.shape]}, where [{', '.join(names)}] belongs"
            continue
        for axis, size in zip(names, tensor.shape, strict=True):
            if sizes.get(axis) is None:
                sizes[axis] = size
            if size == 0:
                yield f"{name} is {[*tensor.shape]}, which is empty"
            elif size != sizes[axis]:
                by = "as the configuration says" if said.get(axis) is not None else "as in the others"
                yield f"{name} is {[*tensor.shape]}: {size} for {axis}, not {sizes[axis]} {by}"
        if tensor.dtype not in _FLOATS:
            yield f"{name} is of {tensor.dtype}, not of floating-point numbers"
        elif bad := int((~torch.isfinite(tensor.float())).sum()):
            yield f"{name} holds {bad:,} values that are not finite in float32"


def whole(found: dict[str, Tensor], name: str, where: str) -> int | None:
    """Takes a tensor of one whole number out of `found`; None where there is none of the name."""
    if name not in found:
        return None
    tensor = found.pop(name)
    if tensor.numel() != 1 or tensor.is_floating_point() or tensor.is_complex():
        raise BadInput(f"{where}: {name} is {[*tensor.shape]} {tensor.dtype}, not one whole number.")
    return int(tensor.item())


def number(config: Mapping[str, Any], name: str, where: str) -> int | None:
    """A whole number above 0 of a configuration; None where it is absent or null."""
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise BadInput(f"{where}: {name} is {value!r}, not a whole number above 0.")
    return int(value)
