"""What is counted per slice and token: how often among the largest rises and falls, how far, how surprisingly."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Per slice and token: int64 counts, float64 sums. See `Result` for what each is.
TOKENS = {
    "promoted": torch.int64,
    "suppressed": torch.int64,
    "net_squares": torch.int64,
    "as_spelt": torch.int64,
    "positive": torch.int64,
    "shift": torch.float64,
    "kl_up": torch.float64,
    "kl_down": torch.float64,
}
# Per slice.
SLICES = {
    "positions": torch.int64,
    "unscored": torch.int64,
    "kl": torch.float64,
    "reverse_kl": torch.float64,
}
# Positions that get a histogram of their own, and its edges: log2 of a rise in logits.
LEADING = 16
LOG2_EDGES = tuple(j / 2 for j in range(-20, 15))
_EDGES = torch.tensor([2.0**e for e in LOG2_EDGES], dtype=torch.float32)


class Counts:
    """Flat in the corpus: its size is that of slices x vocabulary."""

    def __init__(self, slices: int, vocab: int) -> None:
        self._shape = (slices, vocab)
        self.tokens = {name: torch.zeros(slices, vocab, dtype=kind) for name, kind in TOKENS.items()}
        self.slices = {name: torch.zeros(slices, dtype=kind) for name, kind in SLICES.items()}
        self.density = torch.zeros(slices, LEADING, len(LOG2_EDGES) + 1, dtype=torch.int64)

    def book_texts(
        self, where: Int[Tensor, " batch"], up: Int[Tensor, "batch vocab"], down: Int[Tensor, "batch vocab"]
    ) -> None:
        """One step's texts: `up` and `down` are each text's counts. The squares of what they differ by are what
        sign-symmetry over texts is judged on."""
        for name, values in (("promoted", up), ("suppressed", down), ("net_squares", (up - down).square())):
            self.tokens[name].index_add_(0, where, values)

    def book_moves(
        self,
        slices: Int[Tensor, " some"],
        shift: Float[Tensor, "some vocab"],
        positive: Float[Tensor, "some vocab"],
    ) -> None:
        """Sums of the centred difference, and how many are above 0, of the slices in `slices`; on any device."""
        for name, values in (("shift", shift), ("positive", positive)):
            held = self.tokens[name].to(values.device)  # moves once, with the first chunk
            self.tokens[name] = held.index_add_(0, slices.to(values.device), values.to(held.dtype))

    def book_entries(
        self,
        name: str,
        where: Int[Tensor, "token 1"],
        ids: Int[Tensor, "token k"],
        values: Float[Tensor, "token k"],
    ) -> None:
        """Adds `values` at (slice, token); an id of -1 is no entry."""
        flat = (where * self._shape[1] + ids)[ids >= 0]
        held = self.tokens[name]
        held.view(-1).index_add_(0, flat, values[ids >= 0].to(held.dtype))

    def book_slices(self, name: str, where: Int[Tensor, " token"], values: Tensor) -> None:
        self.slices[name].index_add_(0, where, values.to(self.slices[name].dtype))

    def book_density(
        self, where: Int[Tensor, " token"], position: Int[Tensor, " token"], values: Float[Tensor, "token k"]
    ) -> None:
        """The sizes of the rises at leading positions; 0 is no rise."""
        near = position < LEADING
        sizes = values[near]
        bins = torch.bucketize(sizes, _EDGES, right=True)
        flat = (where[near] * LEADING + position[near])[:, None] * self.density.shape[2] + bins
        flat = flat[sizes > 0]
        self.density.view(-1).index_add_(0, flat, torch.ones_like(flat))

    def merge(self, later: Self) -> None:
        for name in TOKENS:
            self.tokens[name] = self.tokens[name].cpu() + later.tokens[name].cpu()
        for name in SLICES:
            self.slices[name] += later.slices[name]
        self.density += later.density

    def state(self) -> dict[str, Tensor]:
        """Only the slices that were seen: a shard seldom has more than one or two, and the vocabulary is large."""
        seen = (self.slices["positions"] + self.slices["unscored"]).nonzero()[:, 0]
        tokens = {f"tokens.{name}": held.cpu()[seen] for name, held in self.tokens.items()}
        slices = {f"slices.{name}": held[seen] for name, held in self.slices.items()}
        return {"seen": seen, **tokens, **slices, "density": self.density[seen]}

    def restore(self, state: dict[str, Tensor]) -> None:
        fresh = Counts(*self._shape)
        self.tokens, self.slices, self.density = fresh.tokens, fresh.slices, fresh.density
        for name, held in self.tokens.items():
            held[state["seen"]] = state[f"tokens.{name}"]
        for name, held in self.slices.items():
            held[state["seen"]] = state[f"slices.{name}"]
        self.density[state["seen"]] = state["density"]
