"""Fine-tunes that know nothing of safety, as numbers alone: scores, changes of low rank, and the analysis of both.

Matrices have gradients with row and column scales, so that high scores gather in some rows and columns, as SNIP's do. The
nulls: a change that shares nothing with them ("independent"), one that shares their row and column scales ("scales"), and the
first rounded by a merge in bfloat16 ("merged").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetrace.methods.neuron_drift.analysis import Contrast, Settings, analyse
from finetrace.methods.neuron_drift.measuring import drift_rows, matched_pairs
from finetrace.methods.neuron_drift.result import Analysis
from finetrace.methods.neuron_drift.tables import layer_of, stacked
from finetrace.stats import Pooled, pooled
from finetrace.weights.controls import Matched, fully_matched, random_like
from finetrace.weights.delta import Delta
from finetrace.weights.dense import Dense
from finetrace.weights.groups import Group, difference

KINDS = ("q_proj", "v_proj", "up_proj")
OUT, IN, RANK = 32, 256, 4
SIZE = 1e-3


@dataclass(frozen=True, eq=False)
class World:
    """One base: weights, the scales of its gradients, and its groups."""

    weights: dict[str, Tensor]
    rows: dict[str, Tensor]
    columns: dict[str, Tensor]
    safety: Group
    random: Group
    matched: Matched

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        return {"safety_only": self.safety.counts(), "random": self.random.counts()}


def world(seed: int, layers: int = 6, spread: float = 0.5) -> World:
    """spread: sd of the log of row and column scales. The safety group is the set difference, p = q = 0.1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    names = [f"model.layers.{layer}.{kind}" for layer in range(layers) for kind in KINDS]
    weights = {name: 0.02 * normal(OUT, IN) for name in names}
    rows = {name: torch.exp(spread * normal(OUT)) for name in names}
    columns = {name: torch.exp(spread * normal(IN)) for name in names}
    shared = {name: normal(OUT, IN) for name in names}
    scores = [
        {
            name: weights[name].abs()
            * rows[name][:, None]
            * columns[name]
            * (shared[name] + normal(OUT, IN)).abs()
            for name in names
        }
        for _ in range(2)
    ]
    safety = difference(scores[0], scores[1], 0.1, 0.1, name="safety_only")
    random = random_like(safety, dict.fromkeys(names, (OUT, IN)), seed)
    return World(weights, rows, columns, safety, random, fully_matched(safety, weights, columns, seed))


@dataclass(frozen=True, eq=False)
class Tunes:
    """Many fine-tunes of a world: factors of each matrix, [tune, OUT, RANK] and [tune, RANK, IN]."""

    made: World
    null: str
    up: dict[str, Tensor]
    down: dict[str, Tensor]
    planted: float = 1.0

    def changes(self, name: str, ids: Tensor, tune: slice | int = slice(None)) -> Tensor:
        """The change of entries of a matrix, float64 [tune, entry] (of one tune: [entry])."""
        up, down = self.up[name][tune], self.down[name][tune]
        change = (up[..., ids // IN, :] * down[..., :, ids % IN].transpose(-1, -2)).sum(-1)
        change = torch.where(torch.isin(ids, self.made.safety.of(name)), self.planted * change, change)
        if self.null != "merged":
            return change
        # A tenth of the size: the smallest changes of large weights are then rounded away.
        before = self.made.weights[name].reshape(-1)[ids].to(torch.bfloat16).double()
        return (before + 0.1 * change).to(torch.bfloat16).double() - before

    def deltas(self, tune: int) -> dict[str, Delta]:
        """One of them as changes of weights."""
        every = torch.arange(OUT * IN)
        found = {name: self.changes(name, every, tune).reshape(OUT, IN) for name in self.up}
        return {name: Dense(name, torch.zeros(OUT, IN).double(), found[name]) for name in found}


def tunes(made: World, null: str, n: int, seed: int, planted: float = 1.0) -> Tunes:
    """planted: how many times further the safety group moves."""
    generator = torch.Generator().manual_seed(seed)
    ups, downs = {}, {}
    for name in made.weights:
        up = torch.randn(n, OUT, RANK, generator=generator, dtype=torch.float64)
        down = torch.randn(n, RANK, IN, generator=generator, dtype=torch.float64)
        if null == "scales":
            up, down = up * made.rows[name][:, None], down * made.columns[name]
        ups[name], downs[name] = SIZE / RANK**0.5 * up, down
    return Tunes(made, null, ups, downs, planted)


def pools(found: Tunes, seeds: int, control: str = "matched") -> list[Pooled]:
    """The pooled log ratio of the safety group in each experiment of so many training seeds: what `analyse` pools."""
    made, rows = found.made, []
    for name in made.weights:
        pairs = made.matched.pairs[name]
        if control == "matched":
            sides = [found.changes(name, pairs[:, side]).square().mean(1).numpy() for side in (0, 1)]
        else:
            sides = [
                found.changes(name, g.of(name)).square().mean(1).numpy() for g in (made.safety, made.random)
            ]
        rows.append(0.5 * np.log(sides[0] / sides[1]))
    effects = np.stack(rows, axis=1)
    weights = np.array([len(made.matched.pairs[name]) for name in made.weights], np.float64)
    layers = np.array([layer_of(name) for name in made.weights])
    runs = effects.reshape(-1, seeds, len(layers))
    pooled_runs = [pooled(run, weights, layers, replicates=1) for run in runs]
    return [one for one in pooled_runs if one is not None]


def analysed(found: Tunes, seeds: int, draws: int = 199) -> Analysis:
    """The whole analysis of the first so many fine-tunes: against the fully matched and the random control."""
    made, changes = found.made, [found.deltas(n) for n in range(seeds)]
    groups = {
        "safety_only": made.safety,
        "random": made.random,
        "treated": made.matched.treated,
        "control": made.matched.control,
    }
    rows = stacked(
        [drift_rows(tune, made.weights.__getitem__, groups, seed=n) for n, tune in enumerate(changes)]
    )
    contrasts = (
        Contrast("safety_only", "matched", "treated", "control", made.matched.rate),
        Contrast("safety_only", "random", "safety_only", "random"),
    )
    pairs = {("safety_only", "matched"): matched_pairs(made.matched, changes)}
    return analyse(rows, contrasts, made.sizes, pairs, Settings(draws=draws))


def entries(found: Tunes, group: Group) -> tuple[np.ndarray, np.ndarray]:
    """(change, weight) of a group's entries in the first fine-tune, three of four matrices not adapted: as seed 003 has it."""
    moved, own = [], []
    for name, ids in group.places.items():
        change = found.changes(name, ids, 0)
        for times in (1, 0, 0, 0):
            moved.append(times * change)
            own.append(found.made.weights[name].reshape(-1)[ids].double())
    return torch.cat(moved).numpy(), torch.cat(own).numpy()
