"""What is kept of the hidden states: sums by slice and group of texts, made only for those that were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Block:
    """One group of one slice's texts of one kind; each text is one vector a place and layer.

    difference [layer, place, d_model]: sum of tuned minus base. square [layer, place]: sum of its squared norms. base_norm,
    other_norm [layer, place]: sums of the norms of the states themselves. texts, tokens [place]. float64 and int64.
    """

    difference: Float[Tensor, "layer place d_model"]
    square: Float[Tensor, "layer place"]
    base_norm: Float[Tensor, "layer place"]
    other_norm: Float[Tensor, "layer place"]
    texts: Int[Tensor, " place"]
    tokens: Int[Tensor, " place"]

    def add(self, other: Block) -> None:
        """Out of place: what was made inside inference mode may not be written to outside of it."""
        for name in FIELDS:
            ours = getattr(self, name)
            setattr(self, name, ours + getattr(other, name).to(ours.device))


FIELDS = ("difference", "square", "base_norm", "other_norm", "texts", "tokens")


class Sums:
    """One kind's sums. blocks: (slice, group) -> Block; base: slice -> sum of the base's states [layer, place, d_model].

    In memory and on disk: 8 bytes x layers x places x d_model x (groups + 1) for each slice with texts of the kind.
    """

    def __init__(self, places: int, layers: int, d_model: int) -> None:
        self._shape = (layers, places, d_model)
        self.blocks: dict[tuple[int, int], Block] = {}
        self.base: dict[int, Tensor] = {}

    def block(self, where: tuple[int, int], device: torch.device) -> Block:
        """The block of a (slice, group), made empty if it is new."""
        if where not in self.blocks:
            flat = self._shape[:2]
            shapes = (self._shape, flat, flat, flat)
            sums = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
            counts = [torch.zeros(flat[1], dtype=torch.int64, device=device) for _ in range(2)]
            self.blocks[where] = Block(*sums, *counts)
        return self.blocks[where]

    def base_of(self, slice_: int, device: torch.device) -> Tensor:
        if slice_ not in self.base:
            self.base[slice_] = torch.zeros(self._shape, dtype=torch.float64, device=device)
        return self.base[slice_]

    def merge(self, later: Self) -> None:
        for where, block in later.blocks.items():
            self.block(where, block.difference.device).add(block)
        for slice_, states in later.base.items():
            total = self.base_of(slice_, states.device)
            self.base[slice_] = total + states.to(total.device)

    def state(self) -> dict[str, Tensor]:
        """Blocks in the order of their names, whatever order they were seen in."""
        keys, slices = sorted(self.blocks), sorted(self.base)
        found = {
            "key": torch.tensor(keys, dtype=torch.int64).reshape(-1, 2),
            "slice": torch.tensor(slices, dtype=torch.int64),
            "base": self._stack([self.base[s] for s in slices], self._shape, torch.float64),
        }
        empty = Sums(*self._shape).block((0, 0), torch.device("cpu"))
        for name in FIELDS:
            like = getattr(empty, name)
            parts = [getattr(self.blocks[key], name) for key in keys]
            found[name] = self._stack(parts, tuple(like.shape), like.dtype)
        return found

    @staticmethod
    def _stack(parts: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.stack([part.cpu() for part in parts]) if parts else torch.zeros(0, *shape, dtype=dtype)

    def restore(self, state: dict[str, Tensor]) -> None:
        columns = {name: state[name].clone() for name in FIELDS}
        self.blocks = {
            (int(slice_), int(group)): Block(**{name: columns[name][i] for name in FIELDS})
            for i, (slice_, group) in enumerate(state["key"].tolist())
        }
        base = state["base"].clone()
        self.base = {slice_: base[i] for i, slice_ in enumerate(state["slice"].tolist())}
