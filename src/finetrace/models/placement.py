"""Where the models are: each on one device, or laid out over all GPUs. What two sides give meets on the base's device.

An adapter is where its base is. Full nulls are where tuned is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from finetrace.core.errors import BadInput, ModelError
from finetrace.models import loading

AUTO = "auto"
_ROOM = 0.6
"""Of the free memory that weights may take in float32: the rest is for what is computed."""

DeviceMap = tuple[str | None, str | None]
"""Of base and tuned: a device, "auto", or None where `device` says it."""


@dataclass(frozen=True)
class Place:
    """device: takes the token ids. spread: the layers lie over all GPUs, the first ones on `device`."""

    device: torch.device
    spread: bool = False

    def __str__(self) -> str:
        return "all GPUs" if self.spread else str(self.device)


def place(word: str | None, device: str) -> Place:
    """The place that a user's word names; BadInput for one that is not there. "auto" is all GPUs, or `auto`'s one device."""
    if word != AUTO:
        return Place(loading.pick_device(device if word is None else word))
    where = loading.pick_device(AUTO)
    if where.type == "cuda" and torch.cuda.device_count() > 1:
        return Place(torch.device("cuda", 0), spread=True)
    return Place(where)


def places(device: str, device_map: DeviceMap, tuned: str, kind: str) -> tuple[Place, Place]:
    """Of the base, and of tuned and all nulls that are full checkpoints. tuned, kind: its name, and what it is; BadInput where
    it has no weights of its own and is told to be elsewhere than its base."""
    base = place(device_map[0], device)
    if kind == "full":
        return base, place(device_map[1], device)
    own = base if device_map[1] is None else place(device_map[1], device)
    if not same(own, base):
        what = (
            "Tuned is the base itself" if kind != "adapter" else f"The adapter {tuned} is where its base is"
        )
        raise BadInput(f"{what}, on {base}; the device map puts it on {own}: give the base's place alone.")
    return base, base


def same(one: Place, other: Place) -> bool:
    """Whether two places are one; a bare `cuda` is the first GPU."""
    alike = one.device.type == other.device.type and (one.device.index or 0) == (other.device.index or 0)
    return alike and one.spread == other.spread


def pick_dtype(wanted: str, held: Sequence[tuple[Place, int]], own: str | None) -> torch.dtype:
    """As `loading.pick_dtype`, for several models. held: where each is, and its bytes in float32. "auto" is float32 if each
    GPU has room for what is on it alone, and all GPUs together for everything."""
    if wanted != AUTO:
        return loading.pick_dtype(wanted, held[0][0].device, 0, own)
    on_gpu = [(where, size) for where, size in held if where.device.type == "cuda"]
    if not on_gpu:
        return torch.float32
    alone: dict[int, int] = {}
    for where, size in on_gpu:
        if not where.spread:
            index = where.device.index or 0
            alone[index] = alone.get(index, 0) + size
    used = range(torch.cuda.device_count()) if any(where.spread for where, _ in on_gpu) else sorted(alone)
    free = {index: _ROOM * torch.cuda.mem_get_info(index)[0] for index in used}
    fits = all(size <= free[index] for index, size in alone.items())
    if fits and sum(size for _, size in on_gpu) <= sum(free.values()):
        return torch.float32
    return loading.DTYPES.get(own or "", torch.bfloat16)


def refuse_offloaded(model: Any, name: str) -> None:
    """A ModelError if layers were left on the CPU or the disk for want of memory: what they weigh could not be read."""
    found: dict[str, Any] = vars(model).get("hf_device_map", {})
    left = [part for part, where in found.items() if str(where) in ("cpu", "disk")]
    if left and len(left) < len(found):
        raise ModelError(
            f"{name} does not fit into the memory of all GPUs: {len(left)} of its {len(found)} parts would stay outside, "
            f"first {left[0]}. Pass --dtype bfloat16, or use more GPUs."
        )
