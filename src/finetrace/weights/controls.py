"""Weights to hold a group against: random ones, and ones like it in all but the score.

A score and an update share scales: of a weight's own size, of its output row (its gradient's) and of its input column
(its input's). A group of high scores then moves more than random weights do, and more than weights of the same size,
although nothing aimed at it. So the control that decides is matched on matrix x output row x column scale x size, 1:1.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.weights.delta import blocks
from finetrace.weights.groups import Group, Shapes

Columns = Mapping[str, Float[Tensor, "in"]]
"""Module -> scale of each input column: `Scores.columns`."""

# Widths of bins, (log of column scale, log2 of |W|): what finds no partner in narrow ones may find one in wider ones.
LEVELS = ((0.1, 0.5), (0.2, 1.0), (0.4, 2.0), (0.4, 3.0))
SIZES = 100
_NO_SPREAD = 1e-9


@dataclass(frozen=True, eq=False)
class Matched:
    """A group's part that found partners, and those partners.

    rate: share of the group that did; None where it is empty. before, balance: standardised mean difference of the
    group from all other weights of the same matrices, and of `treated` from `control`: of the "log weight", the
    log "row norm" of W and, where the matching knows it, the log "column scale" (differences within matrices over the
    standard deviation of before; below 0.1 is taken as balanced). pairs: module -> places [n, 2], treated and its
    control. strata: module -> id of each pair's stratum [n]: under the null, places may be swapped within one.
    """

    treated: Group
    control: Group
    rate: float | None
    balance: Mapping[str, float]
    before: Mapping[str, float]
    pairs: Mapping[str, Int[Tensor, "n 2"]]
    strata: Mapping[str, Int[Tensor, "n"]]


def random_like(group: Group, shapes: Shapes, seed: int, exclude: Sequence[Group] = ()) -> Group:
    """As many random places of each matrix as the group has there, none of them its own or an excluded group's; fewer
    where fewer are left."""
    found = {}
    for module, ids in group.places.items():
        n = shapes[module][0] if group.unit == "rows" else math.prod(shapes[module])
        taken = _taken(module, n, (group, *exclude))
        drawn = torch.rand(n, generator=_generator(seed, module)).masked_fill_(taken, 2.0)
        count = min(len(ids), n - int(taken.sum()))
        found[module] = drawn.topk(count, largest=False, sorted=False).indices.sort().values
    return Group("random", group.unit, found)


def magnitude_matched(
    group: Group,
    weights: Mapping[str, Float[Tensor, "out in"]],
    seed: int,
    exclude: Sequence[Group] = (),
    *,
    bins: int = SIZES,
) -> Matched:
    """Partners of the same matrix and the same of `bins` quantiles of the group's own |W| (of rows: of their norm)."""
    return _Matching(group, weights, None, seed, exclude).by_size(bins)


def fully_matched(
    group: Group,
    weights: Mapping[str, Float[Tensor, "out in"]],
    columns: Columns,
    seed: int,
    exclude: Sequence[Group] = (),
) -> Matched:
    """Partners of the same matrix and output row, of about the same column scale and |W|: see LEVELS. Of several in a
    narrow bin the largest goes to the largest, in one of the widest that of the largest column scale to that of the largest.

    Whole rows have no partner in their own row: use `magnitude_matched`, and bear in mind that rows then still differ by
    the scale of their gradients.
    """
    if group.unit == "rows":
        raise BadInput(
            "Whole rows have no partners in their own row: only single weights can be matched on row and column."
        )
    return _Matching(group, weights, columns, seed, exclude).in_rows()


class _Matching:
    """Pairs of a group's places with others of the same matrix, each place used once."""

    def __init__(
        self,
        group: Group,
        weights: Mapping[str, Tensor],
        columns: Columns | None,
        seed: int,
        exclude: Sequence[Group],
    ) -> None:
        self._group, self._weights, self._columns = group, weights, columns
        self._seed, self._taken_by = seed, (group, *exclude)
        self._balance = _Balance()
        self._pairs: dict[str, Tensor] = {}
        self._strata: dict[str, Tensor] = {}

    def by_size(self, bins: int) -> Matched:
        for module, ids in self._group.places.items():
            weight = self._weights[module].cpu()
            size = (
                weight.float().norm(dim=1) if self._group.unit == "rows" else weight.abs().float().flatten()
            )
            free = ~_taken(module, len(size), self._taken_by)
            edges = _quantiles(size[ids], bins)
            other = (free & (size >= edges[0]) & (size <= edges[-1])).nonzero()[:, 0] if len(ids) else ids
            key = torch.searchsorted(edges[1:-1].contiguous(), size[torch.cat([ids, other])], right=True)
            drawn = torch.rand(len(key), generator=_generator(self._seed, module))
            first, second = _paired(key[: len(ids)], key[len(ids) :], drawn[: len(ids)], drawn[len(ids) :])
            self._keep(module, ids[first], other[second], key[first])
        return self._matched()

    def in_rows(self) -> Matched:
        for module, ids in self._group.places.items():
            weight, generator = self._weights[module].cpu(), _generator(self._seed, module)
            free = ~_taken(module, weight.numel(), self._taken_by)
            scale = _log(self._scale(module))
            found, strata = [], 0
            for block in blocks(*weight.shape):
                treated, control, stratum = self._in_block(weight, scale, ids, free, block, generator)
                known, stratum = torch.unique(stratum, return_inverse=True)
                found.append((treated, control, stratum + strata))
                strata += len(known)
            treated, control, stratum = (torch.cat(parts) for parts in zip(*found, strict=True))
            self._keep(module, treated, control, stratum)
        return self._matched()

    def _in_block(
        self,
        weight: Tensor,
        scale: Tensor,
        ids: Tensor,
        free: Tensor,
        block: tuple[int, int],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Treated, control and stratum of the pairs in a few rows; no stratum is of two rows."""
        width = weight.shape[1]
        low, high = block[0] * width, block[1] * width
        left = ids[(ids >= low) & (ids < high)]
        other = free[low:high].nonzero()[:, 0] + low
        columns_of = scale.float()
        size = _log(weight[block[0] : block[1]].abs().float().flatten()) / math.log(2)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for level, (column_width, size_width) in enumerate(LEVELS):
            column, own = _bins(scale, column_width), _bins(size, size_width)
            spans = int(column.max()) + 1, int(own.max()) + 1

            def key(ids: Tensor, column: Tensor = column, own: Tensor = own, spans: Any = spans) -> Tensor:
                row = ids // width - block[0]
                return (row * spans[0] + column[ids % width]) * spans[1] + own[ids - low]

            mine, theirs = key(left), key(other)
            wanted = torch.zeros((block[1] - block[0]) * spans[0] * spans[1], dtype=torch.bool)
            wanted[mine] = True
            near = wanted[theirs]
            some = other[near]
            # Narrow bins need no order of columns; in the widest the group's lie high, and so must its partners'.
            order = [columns_of[ids % width] if level > 1 else size[ids - low] for ids in (left, some)]
            rank = [_tiny(len(values), generator) - values.nan_to_num(0.0) for values in order]
            first, second = _paired(mine, theirs[near], *rank)
            stratum = mine[first] * len(LEVELS) + level
            found.append((left[first], some[second], stratum))
            other = other[_unused(len(other), near.nonzero()[:, 0][second])]
            left = left[_unused(len(left), first)]
        treated, control, strata = (torch.cat(parts) for parts in zip(*found, strict=True))
        return treated, control, strata

    def _scale(self, module: str) -> Tensor:
        scale = None if self._columns is None else self._columns.get(module)
        if scale is None:
            raise BadInput(f"There is no column scale of {module} to match by.")
        return scale.cpu()

    def _keep(self, module: str, treated: Tensor, control: Tensor, stratum: Tensor) -> None:
        order = treated.argsort()
        self._pairs[module] = torch.stack([treated[order], control[order]], 1)
        self._strata[module] = stratum[order]
        for name, covariate in self._covariates(module).items():
            self._balance.add(name, covariate, self._group.of(module), treated, control)

    def _covariates(self, module: str) -> dict[str, _Covariate]:
        weight = self._weights[module].cpu()
        norms = _log(weight.double().norm(dim=1))
        if self._group.unit == "rows":
            return {"row norm": _Covariate(norms, lambda ids: ids)}
        rows, width = weight.shape
        found = {
            "log weight": _Covariate(_log(weight.abs().float().flatten()), lambda ids: ids),
            "row norm": _Covariate(norms, lambda ids: ids // width, times=width),
        }
        if self._columns is not None:
            scale = _log(self._scale(module).double())
            found["column scale"] = _Covariate(scale, lambda ids: ids % width, times=rows)
        return found

    def _matched(self) -> Matched:
        name, unit = self._group.name, self._group.unit
        sides = [{m: pairs[:, side].sort().values for m, pairs in self._pairs.items()} for side in (0, 1)]
        before, after = self._balance.gaps()
        n = sum(len(pairs) for pairs in self._pairs.values())
        return Matched(
            treated=Group(f"{name}_matched", unit, sides[0]),
            control=Group(f"{name}_control", unit, sides[1]),
            rate=n / len(self._group) if len(self._group) else None,
            balance=after,
            before=before,
            pairs=self._pairs,
            strata=self._strata,
        )


@dataclass(frozen=True)
class _Covariate:
    """values: logarithms, NaN where there is none; at: places -> their index in `values`; times: how many places share a
    value."""

    values: Float[Tensor, "n"]
    at: Callable[[Tensor], Tensor]
    times: int = 1

    def of(self, ids: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        return self.values[self.at(ids)].double()

    def total(self) -> Float[Tensor, "3"]:
        return _moments(self.values) * self.times


def _moments(values: Tensor) -> Float[Tensor, "3"]:
    """Count, sum and sum of squares of what is finite, float64."""
    kept = values[torch.isfinite(values)].double()
    return torch.stack([kept.new_tensor(float(len(kept))), kept.sum(), kept.square().sum()])


class _Balance:
    """Standardised mean differences, within matrices: of a group from all else, and of its pairs."""

    def __init__(self) -> None:
        # name -> sums of: n, n * gap before, n * variance, pairs, gaps of pairs.
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, covariate: _Covariate, group: Tensor, treated: Tensor, control: Tensor) -> None:
        total, own = covariate.total(), _moments(covariate.of(group))
        rest = total - own
        if not own[0] or not rest[0]:
            return
        gaps = covariate.of(treated) - covariate.of(control)
        gaps = gaps[torch.isfinite(gaps)]
        variance = total[2] / total[0] - (total[1] / total[0]).square()
        gap = own[1] / own[0] - rest[1] / rest[0]
        found = torch.stack(
            [own[0], own[0] * gap, own[0] * variance, own.new_tensor(float(len(gaps))), gaps.sum()]
        )
        self._sums[name] = self._sums.get(name, torch.zeros(5, dtype=torch.float64)) + found

    def gaps(self) -> tuple[dict[str, float], dict[str, float]]:
        """Before and after; without what has no spread, or no pair."""
        before, after = {}, {}
        for name, (n, gap, variance, pairs, left) in self._sums.items():
            spread = float((variance / n).clamp_min(0).sqrt())
            if spread > _NO_SPREAD:
                before[name] = float(gap / n) / spread
                if pairs:
                    after[name] = float(left / pairs) / spread
        return before, after


def _generator(seed: int, module: str) -> torch.Generator:
    """Of one module, so that no other's places depend on which modules there are."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {module}".encode()))


def _taken(module: str, n: int, groups: Sequence[Group]) -> Bool[Tensor, "n"]:
    units = {group.unit for group in groups}
    if len(units) > 1:
        raise BadInput("A group and those that its control must not touch have to be of one unit.")
    taken = torch.zeros(n, dtype=torch.bool)
    for group in groups:
        taken[group.of(module)] = True
    return taken


def _log(values: Tensor) -> Tensor:
    """Natural logarithm; NaN of 0."""
    return torch.where(values > 0, values, torch.nan).log()


def _bins(values: Tensor, width: float) -> Int[Tensor, "n"]:
    """Number of the bin of each logarithm, from 1; what has none is in bin 0."""
    found = (values / width).floor()
    there = torch.isfinite(found)
    lowest = float(found[there].min()) if bool(there.any()) else 0.0
    return torch.where(there, found - lowest + 1, 0.0).long()


def _tiny(n: int, generator: torch.Generator) -> Float[Tensor, "n"]:
    """What settles which of equal columns come first."""
    return 1e-6 * torch.rand(n, generator=generator)


def _quantiles(values: Float[Tensor, "n"], bins: int) -> Float[Tensor, "edge"]:
    """Edges of at most so many bins with as many of the values in each, two or more."""
    if not len(values):
        return torch.zeros(2)
    ordered = values.sort().values
    bins = min(bins, max(1, len(values) // 2))
    return ordered[torch.linspace(0, len(values) - 1, bins + 1).round().long()]


def _paired(
    first: Int[Tensor, "n"],
    second: Int[Tensor, "m"],
    first_rank: Float[Tensor, "n"],
    second_rank: Float[Tensor, "m"],
) -> tuple[Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Indices of pairs with equal keys, each used once: the lowest rank of a key with the lowest, and so on."""
    mine, theirs = (_ordered(key, rank) for key, rank in ((first, first_rank), (second, second_rank)))
    keys, others = first[mine], second[theirs]
    place = torch.arange(len(keys)) - torch.searchsorted(keys, keys)
    partner = torch.searchsorted(others, keys) + place
    there = partner < torch.searchsorted(others, keys, right=True)
    return mine[there], theirs[partner[there]]


def _ordered(key: Tensor, rank: Tensor) -> Int[Tensor, "n"]:
    """Indices by key, then by rank."""
    by_rank = rank.argsort(stable=True)
    return by_rank[key[by_rank].argsort(stable=True)]


def _unused(n: int, used: Int[Tensor, "k"]) -> Bool[Tensor, "n"]:
    kept = torch.ones(n, dtype=torch.bool)
    kept[used] = False
    return kept
