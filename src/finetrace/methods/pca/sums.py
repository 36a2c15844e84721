"""What is kept of one layer while the texts go by: covariances by half of the texts, means and energies by slice."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from finetrace.engine.covariance import Covariance
from finetrace.methods.pca.places import PLACES, REST, Seen, by_half

_NAMES = ("difference.0", "difference.1", "base", "tuned")


class Sums:
    """difference: covariances of tuned minus base, one a half of the texts. base, tuned: of the states, all texts.

    energy [place, slice, 2]: sums of squared norms of the change and of the base's state; tokens [place, slice]. mean
    [slice, d_model]: sums of the change. texts [half]. float64 and int64; nothing grows with what is read.
    """

    def __init__(self, slices: int, d_model: int) -> None:
        self.difference = (Covariance(d_model), Covariance(d_model))
        self.base, self.tuned = Covariance(d_model), Covariance(d_model)
        self.energy = torch.zeros(len(PLACES), slices, 2, dtype=torch.float64)
        self.tokens = torch.zeros(len(PLACES), slices, dtype=torch.int64)
        self.mean = torch.zeros(slices, d_model, dtype=torch.float64)
        self.texts = torch.zeros(2, dtype=torch.int64)

    def see(self, found: Seen, slices: Tensor) -> None:
        """slices: int64 [batch], each row's slice."""
        for half, part in by_half(found):
            self.difference[half].see(part.change)
            self.base.see(part.base)
            self.tuned.see(part.base + part.change)
            self.texts[half] += len(part.text.unique())
        where = slices.to(found.text.device)[found.text]
        flat = (found.place * self.tokens.shape[1] + where).cpu()
        self.energy.view(-1, 2).index_add_(0, flat, found.square.double().cpu())
        self.tokens.view(-1).index_add_(0, flat, torch.ones_like(flat))
        inside = found.place == REST
        sums = torch.zeros(self.mean.shape, dtype=torch.float64, device=found.change.device)
        self.mean += sums.index_add_(0, where[inside], found.change[inside].double()).cpu()

    def _covariances(self) -> dict[str, Covariance]:
        return dict(zip(_NAMES, (*self.difference, self.base, self.tuned), strict=True))

    def _plain(self) -> dict[str, Tensor]:
        return {"energy": self.energy, "tokens": self.tokens, "mean": self.mean, "texts": self.texts}

    def merge(self, later: Self) -> None:
        theirs = later._covariances()
        for name, one in self._covariances().items():
            one.merge(theirs[name])
        for ours, added in zip(self._plain().values(), later._plain().values(), strict=True):
            ours += added

    def state(self) -> dict[str, Tensor]:
        found = dict(self._plain())
        for name, one in self._covariances().items():
            found |= {f"{name}.{key}": tensor for key, tensor in one.state().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, one in self._covariances().items():
            head = f"{name}."
            one.restore({key.removeprefix(head): t for key, t in state.items() if key.startswith(head)})
        for name, tensor in self._plain().items():
            tensor.copy_(state[name])
