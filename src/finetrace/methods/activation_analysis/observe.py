"""The streaming half: sums by text and by class of token, sketches of the tokens' figures, and the texts that moved most."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from finetrace.data import ROLES
from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.activation_analysis import Config
from finetrace.methods.activation_analysis.alignment import compared, gram_sums
from finetrace.methods.activation_analysis.figures import BANDS, CLASSES, FIRST, QUANTITIES, band, figures
from finetrace.methods.activation_analysis.passages import Passages
from finetrace.methods.activation_analysis.result import Result
from finetrace.methods.activation_analysis.spaces import Spaces, layers_kept
from finetrace.methods.activation_analysis.summarise import summarise
from finetrace.models import layer_index
from finetrace.stats.sketch import Sketch

_Q, _FIRST = len(QUANTITIES), CLASSES.index(FIRST)


def observer(config: Config, subject: Subject) -> ActivationAnalysis:
    return ActivationAnalysis(config, subject)


class ActivationAnalysis:
    """Figures of tokens are float32, sums float64, counts int64. A token that is left out is in no sum and in no count.

    Position 0 is apart from the start: it is in `cells` (as band 0), in `own` (as the class `first`) and in the sketch's first
    half, and in nothing else.
    """

    def __init__(self, config: Config, subject: Subject) -> None:
        self._config, self._subject = config, subject
        self._layer = layer_index(config.layer, subject.n_layers)
        slices, layers = len(subject.slices), subject.n_layers
        self._tables: list[dict[str, Tensor]] = []
        cells = slices * len(ROLES) * len(BANDS)
        self._cells = torch.zeros(cells, layers * _Q, dtype=torch.float64)
        self._cell_counts = torch.zeros(cells, dtype=torch.int64)
        self._unscored = torch.zeros(slices, dtype=torch.int64)
        self._sketch = Sketch((2, slices, layers, _Q))
        self._passages = Passages(config.passages)
        kept = layers_kept(layers, subject.d_model, self._layer, config.memory) if config.directions else ()
        self._spaces = Spaces(kept, subject.d_model)

    def see(self, step: Step) -> None:
        layers = range(self._subject.n_layers)
        whole = torch.stack([figures(*_widened(step, layer)) for layer in layers], 2)
        usable = step.keep & whole.isfinite().all(-1).all(-1)
        later = usable & (step.position > 0)
        grams = []
        for layer in layers:
            base, other = _widened(step, layer)
            grams.append(gram_sums(base, other, later, self._config.window))
            if layer in self._spaces.layers:
                self._spaces.see(layer, base[later], other[later])
        gram = torch.stack(grams, 1).cpu()
        whole, usable, later = whole.cpu(), usable.cpu(), later.cpu()
        self._count(step, whole, usable)
        self._tables.append(self._per_text(step, whole, later, usable) | {"gram": gram})
        shown = whole[:, :, self._layer, 0]
        self._passages.offer(step, shown.masked_fill(~later, torch.nan))

    def _count(self, step: Step, whole: Tensor, usable: Tensor) -> None:
        """Cells and sketches of all usable tokens. whole [batch, pos, layer, quantity]."""
        slices = step.slice.cpu()[:, None].expand_as(usable)
        lost = slices[step.keep.cpu() & ~usable]
        self._unscored.index_add_(0, lost, torch.ones_like(lost))
        values, where = whole[usable].flatten(1), slices[usable]
        position, role = step.position.cpu()[usable], step.role.cpu()[usable].long()
        cell = (where * len(ROLES) + role) * len(BANDS) + band(position)
        self._cells.index_add_(0, cell, values.double())
        self._cell_counts.index_add_(0, cell, torch.ones_like(cell))
        width = values.shape[1]
        half = torch.where(position > 0, 1, 0) * len(self._subject.slices) + where
        group = half[:, None] * width + torch.arange(width)
        self._sketch.see(values.numpy().ravel(), group.numpy().ravel())

    def _per_text(self, step: Step, whole: Tensor, later: Tensor, usable: Tensor) -> dict[str, Tensor]:
        """sums [text, layer, quantity] and counts [text]: first tokens apart. own [text, class, quantity], own_counts [text,
        class]: at the configured layer. compared [text]: tokens behind `gram`."""
        rows, kind = len(whole), step.role.cpu().long().masked_fill(step.position.cpu() == 0, _FIRST)
        sums = whole.double().masked_fill(~later[..., None, None], 0.0).sum(1)
        row = torch.arange(rows)[:, None].expand_as(usable)
        at = row[usable] * len(CLASSES) + kind[usable]
        own = torch.zeros(rows * len(CLASSES), _Q, dtype=torch.float64)
        own.index_add_(0, at, whole[:, :, self._layer][usable].double())
        return {
            "key": torch.from_numpy(step.key.view("int64").copy()),
            "row": step.row.cpu(),
            "slice": step.slice.cpu(),
            "sums": sums,
            "counts": later.sum(1),
            "own": own.reshape(rows, len(CLASSES), _Q),
            "own_counts": torch.bincount(at, minlength=len(own)).reshape(rows, len(CLASSES)),
            "compared": compared(later, self._config.window),
        }

    def see_logits(self, chunk: LogitChunk) -> None:
        return None

    def _table(self) -> dict[str, Tensor]:
        if self._tables:
            return {name: torch.cat([table[name] for table in self._tables]) for name in self._tables[0]}
        none, layers = torch.zeros(0, dtype=torch.int64), self._subject.n_layers
        sums = torch.zeros(0, layers, _Q, dtype=torch.float64)
        return {
            **dict.fromkeys(("key", "row", "slice", "counts", "compared"), none),
            "sums": sums,
            "own": sums.new_zeros(0, len(CLASSES), _Q),
            "own_counts": none.reshape(0, 1).expand(0, len(CLASSES)),
            "gram": sums.new_zeros(0, layers, 3),
        }

    def merge(self, later: Self) -> None:
        self._tables.append(later._table())
        self._cells += later._cells
        self._cell_counts += later._cell_counts
        self._unscored += later._unscored
        self._sketch.merge(later._sketch)
        self._passages.merge(later._passages)
        self._spaces.merge(later._spaces)

    def state(self) -> dict[str, Tensor]:
        parts = {
            "table": self._table(),
            "sketch": {name: torch.from_numpy(array) for name, array in self._sketch.state().items()},
            "passage": self._passages.state(),
            "space": self._spaces.state(),
        }
        found = {f"{head}.{name}": tensor for head, part in parts.items() for name, tensor in part.items()}
        return found | {
            "cells": self._cells,
            "cell_counts": self._cell_counts,
            "unscored": self._unscored,
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        def part(head: str) -> dict[str, Tensor]:
            return {name.removeprefix(head): t for name, t in state.items() if name.startswith(head)}

        self._tables = [part("table.")]
        self._cells, self._cell_counts = state["cells"].clone(), state["cell_counts"].clone()
        self._unscored = state["unscored"].clone()
        self._sketch.restore({name: tensor.numpy() for name, tensor in part("sketch.").items()})
        self._passages.restore(part("passage."))
        self._spaces.restore(part("space."))

    def result(self) -> Result:
        return summarise(
            self._config,
            self._subject,
            table={name: tensor.numpy() for name, tensor in self._table().items()},
            cells=(self._cells.numpy(), self._cell_counts.numpy()),
            sketch=self._sketch,
            unscored=self._unscored.numpy(),
            passages=self._passages.spelled(self._subject),
            spaces=self._spaces.found(self._config.directions),
        )


def _widened(step: Step, layer: int) -> tuple[Tensor, Tensor]:
    """Both models' states in float32, before anything is subtracted."""
    base, other = step.hidden(layer)
    return base.float(), other.float()
