"""The second reading: every text along the directions that the other half of the texts gave, and the texts at their ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.engine import Step
from finetrace.engine.desk import Desk
from finetrace.methods.pca import Config
from finetrace.methods.pca.ends import Ends
from finetrace.methods.pca.halves import UNITS, nothing, values
from finetrace.methods.pca.places import REST, Seen, by_half, look
from finetrace.methods.pca.result import Layer, Result
from finetrace.methods.pca.steer import steered
from finetrace.stats import ratio_replicates
from finetrace.stats.intervals import mean_interval

# Sums of a token, in this order; the figures are ratios of them.
INSIDE, TOP, TOP_BASE, MEAN, SQUARE, BASE = range(6)
RATIOS = {
    "top_component_ratio": (TOP, TOP_BASE),
    "component_variance": (INSIDE, BASE),
    "concentration": (INSIDE, SQUARE),
    "mean_share": (MEAN, SQUARE),
}


def run(config: Config, desk: Desk, seen: Result) -> Result:
    """The observer's Result with figures by text, so with intervals and by slice, and with passages; as it is where one
    half of the texts has too few tokens to hold the other against."""
    if min(half.tokens for half in seen.layers[0].halves) < 2:
        return seen
    first = seen.layers[0]
    sides, ends = Sides(first), Ends(config.passages)
    directions = Directions(first, config.read)
    tables: list[dict[str, Tensor]] = []
    texts = len(desk.corpus.tokens) if desk.corpus is not None else 0
    done = 0
    for step in desk.steps([first.layer]):
        with torch.inference_mode():
            found = look(step, first.layer, config.normalise)
            tables.append(sides.table(step, found))
            ends.offer(step, directions.along(step, found))
        done += len(step.row)
        desk.advance(done, texts)
    table = {name: torch.cat([one[name] for one in tables]).numpy() for name in tables[0]}
    names = desk.subject.slices
    return replace(
        seen,
        numbers=estimates(table, np.ones(len(table["key"]), bool), desk.seed),
        slices={name: estimates(table, table["slice"] == i, desk.seed) for i, name in enumerate(names)},
        passages=ends.spelled(desk.subject),
        steered=steered(config, desk, first),
    )


class Sides:
    """What a text's tokens have along the directions of the half of the texts that it is not in."""

    def __init__(self, layer: Layer) -> None:
        self._halves = [
            tuple(torch.from_numpy(rows) for rows in (half.basis, half.top, half.mean))
            for half in reversed(layer.halves)
        ]
        self._mean = torch.from_numpy(layer.base_mean)

    def table(self, step: Step, found: Seen) -> dict[str, Tensor]:
        """key, row, slice, tokens [text]; sums [text, 6], float64."""
        texts, device = len(step.ids), found.change.device
        sums = torch.zeros(texts, 6, dtype=torch.float64, device=device)
        tokens = torch.zeros(texts, dtype=torch.int64, device=device)
        for half, part in by_half(found):
            sums.index_add_(0, part.text, self._token(part, half).double())
            tokens.index_add_(0, part.text, torch.ones_like(part.text))
        key = torch.from_numpy(step.key.view("int64").copy())
        booked = {"row": step.row, "slice": step.slice, "tokens": tokens, "sums": sums}
        return {"key": key} | {name: tensor.cpu() for name, tensor in booked.items()}

    def _token(self, part: Seen, half: int) -> Float[Tensor, "token six"]:
        basis, top, mean = (rows.to(part.change.device) for rows in self._halves[half])
        base = part.base - self._mean.to(part.base.device)
        square = base.square().sum(-1)
        # Where nothing changed there is no direction: the base's variance along an average one stands for it.
        top_base = (base @ top).square() if bool(top.any()) else square / len(top)
        return torch.stack(
            [
                (part.change @ basis.T).square().sum(-1),
                (part.change @ top).square(),
                top_base,
                part.change @ mean,
                part.change.square().sum(-1),
                square,
            ],
            -1,
        )


class Directions:
    """The directions of all texts that are read, and how far a token's change lies along them: over the mean's norm along
    the mean, in standard deviations along a component."""

    def __init__(self, layer: Layer, read: int) -> None:
        rows = torch.from_numpy(layer.directions[:read])
        size = torch.from_numpy(np.sqrt(layer.variance[:read])).float()
        mean = rows[0] * size[0]
        self._real = size > 0
        self._rows, self._size = rows[self._real], size[self._real]
        self._offset = self._rows @ mean
        if bool(self._real[0]):
            self._offset[0] = 0.0

    def along(self, step: Step, found: Seen) -> Float[Tensor, "batch pos direction"]:
        """NaN where a token does not count, or there is no such direction."""
        device = found.change.device
        made = torch.full((*step.ids.shape, len(self._real)), torch.nan, device=device)
        part = found.at(found.place == REST)
        rows, offset, size = (t.to(device) for t in (self._rows, self._offset, self._size))
        values = torch.full((len(part.text), len(self._real)), torch.nan, device=device)
        values[:, self._real.to(device)] = (part.change @ rows.T - offset) / size
        made[part.text, part.position] = values
        return made


def estimates(table: Mapping[str, np.ndarray], mask: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Ratios of sums over texts, with intervals and replicates."""
    mask = mask & (table["tokens"] > 0)
    sums, keys = table["sums"][mask], table["key"][mask].view(np.uint64)
    tokens, texts = int(table["tokens"][mask].sum()), len(np.unique(keys))
    if not tokens:
        return nothing()
    totals = [float(sums[:, i].sum()) for i in (INSIDE, TOP, TOP_BASE, MEAN, SQUARE, BASE)]
    found = dict(zip(RATIOS, values(*totals), strict=True))
    return {key: _estimate(key, value, sums, keys, (tokens, texts), seed) for key, value in found.items()}


def _estimate(
    key: str, value: float | None, sums: np.ndarray, keys: np.ndarray, size: tuple[int, int], seed: int
) -> Estimate:
    if value is None:
        return Estimate(None, UNITS[key], 0, 0)
    above, below = (sums[:, i] for i in RATIOS[key])
    interval = mean_interval(above, below, keys, seed=seed, nonnegative=key != "mean_share")
    low, high = (interval.low, interval.high) if interval else (None, None)
    return Estimate(value, UNITS[key], *size, low, high, ratio_replicates(above, below, keys, seed=seed))
