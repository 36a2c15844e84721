"""The streaming half: exact covariances of the change and of both models' states, at each configured layer."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.pca import Config
from finetrace.methods.pca.places import look
from finetrace.methods.pca.result import Result
from finetrace.methods.pca.summarise import summarise
from finetrace.methods.pca.sums import Sums
from finetrace.models import layer_index


def observer(config: Config, subject: Subject) -> PCA:
    return PCA(config, subject)


def layers_of(config: Config, n_layers: int) -> tuple[int, ...]:
    """The configured layers as numbers, each once, in their order."""
    return tuple(dict.fromkeys(layer_index(layer, n_layers) for layer in config.layers))


class PCA:
    """States are widened before they are subtracted. The size of it does not depend on how much is read."""

    def __init__(self, config: Config, subject: Subject) -> None:
        self._config, self._subject = config, subject
        layers = layers_of(config, subject.n_layers)
        self._sums = {layer: Sums(len(subject.slices), subject.d_model) for layer in layers}
        self._lost = torch.zeros(len(subject.slices), dtype=torch.int64)

    def see(self, step: Step) -> None:
        slices = step.slice.cpu()
        for i, (layer, sums) in enumerate(self._sums.items()):
            found = look(step, layer, self._config.normalise)
            sums.see(found, slices)
            if i == 0:
                self._lost.index_add_(0, slices, found.lost.cpu())

    def see_logits(self, chunk: LogitChunk) -> None:
        return None

    def merge(self, later: Self) -> None:
        for layer, sums in self._sums.items():
            sums.merge(later._sums[layer])
        self._lost += later._lost

    def state(self) -> dict[str, Tensor]:
        found = {"lost": self._lost}
        for layer, sums in self._sums.items():
            found |= {f"{layer}.{name}": tensor for name, tensor in sums.state().items()}
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        for layer, sums in self._sums.items():
            head = f"{layer}."
            sums.restore({name.removeprefix(head): t for name, t in state.items() if name.startswith(head)})
        self._lost.copy_(state["lost"])

    def result(self) -> Result:
        return summarise(self._config, self._subject, self._sums, self._lost)
