"""The matrices that a training moves: what each began as, how far it is from there, and sums over places in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.models.adapters import lora_layers, saved_modules
from finetrace.weights.delta import Delta, LowRank, blocks
from finetrace.weights.dense import Dense
from finetrace.weights.dora import Dora
from finetrace.weights.groups import Group
from finetrace.weights.quantised import is_quantised
from finetrace.weights.read import adapter_deltas, dense_weight, layer_deltas, matrices
from finetrace.weights.stacked import difference

__all__ = ["ALL", "Followed", "Meter", "Moving", "follow", "moving"]

ALL = "all"
# Reading one place from the factors costs as much as this many entries of their product.
_PLACE_COST = 4
# Places that are added up at once, at least: what still stays in a core's cache.
_TOGETHER = 1 << 15


class Moving(Protocol):
    """One trained matrix. whole: whether all of it can be measured, not only the places of groups. must_be_kept: whether
    a resumed training could not know how it began, whatever it began with."""

    module: str
    shape: tuple[int, int]
    device: torch.device
    whole: bool
    must_be_kept: bool

    def delta(self) -> Delta:
        """The change since the beginning, of a matrix that is whole."""
        ...

    def entries(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The change since the beginning at some places."""
        ...

    def began(self, start: int, stop: int) -> Float[Tensor, "row in"]:
        """Rows of the weight as the training began, float64."""
        ...

    def began_at(self, rows: Int[Tensor, "n"], columns: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Places of the weight as the training began, float64."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """What a resumed training could not know any more, by names of its own."""
        ...

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Takes what `kept` gave at the beginning, out of what all matrices gave."""
        ...


class _Adapted:
    """Under an adapter. now: its change against the base as it stands. base: the base's weight. An adapter that did not
    begin at zero is counted from where it began: its weight then was the base's and that together."""

    whole, must_be_kept = True, False

    def __init__(self, now: Callable[[], Delta], base: Callable[[], Tensor]) -> None:
        self._now, self._base = now, base
        begun = now()
        self.module, self.shape = begun.module, begun.shape
        self.device = base().device
        self._initial: Delta | None = _copied(begun) if begun.square() > 0 else None

    def delta(self) -> Delta:
        return self._now() if self._initial is None else difference(self._now(), self._initial)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.delta().entries(rows, columns)

    def began(self, start: int, stop: int) -> Tensor:
        rows = self._base()[start:stop].double()
        return rows if self._initial is None else rows + self._initial.tile(start, stop)

    def began_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        own = self._base()[rows, columns].double()
        return own if self._initial is None else own + self._initial.entries(rows, columns)

    def kept(self) -> dict[str, Tensor]:
        return {} if self._initial is None else _parts(self.module, self._initial)

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        names = _parts(self.module, self._now())
        mine = {name: saved[name].to(self.device) for name in names if name in saved}
        self._initial = _put_together(self._now(), mine) if mine else None


class _Copied:
    """Trained itself; a copy of it is kept."""

    whole, must_be_kept = True, True

    def __init__(self, module: str, live: Tensor) -> None:
        self.module, self.shape, self.device = module, (live.shape[0], live.shape[1]), live.device
        self._live, self._before = live, live.clone()

    def delta(self) -> Delta:
        return Dense(self.module, self._before, self._live)

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self.delta().entries(rows, columns)

    def began(self, start: int, stop: int) -> Tensor:
        return self._before[start:stop].double()

    def began_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self._before[rows, columns].double()

    def kept(self) -> dict[str, Tensor]:
        return {self.module: self._before}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        self._before = saved[self.module].to(self.device)


class _Sampled:
    """Trained itself; only the places `ids` (flat, ascending) of it are kept."""

    whole, must_be_kept = False, True

    def __init__(self, module: str, live: Tensor, ids: Int[Tensor, "n"]) -> None:
        self.module, self.shape, self.device = module, (live.shape[0], live.shape[1]), live.device
        self._live, self._ids = live, ids.to(live.device)
        self._before = live[self._ids // self.shape[1], self._ids % self.shape[1]].clone()

    def delta(self) -> Delta:
        raise BadInput(f"Only some places of {self.module} were kept: track it with whole=True.")

    def entries(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self._live[rows, columns].double() - self.began_at(rows, columns)

    def began(self, start: int, stop: int) -> Tensor:
        raise BadInput(f"Only some places of {self.module} were kept: track it with whole=True.")

    def began_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        return self._before[torch.searchsorted(self._ids, rows * self.shape[1] + columns)].double()

    def kept(self) -> dict[str, Tensor]:
        return {self.module: self._before}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        self._before = saved[self.module].to(self.device)


def _copied(delta: Delta) -> Delta:
    if isinstance(delta, LowRank):
        return delta.copy()
    if isinstance(delta, Dora):
        return replace(delta, low=delta.low.copy(), ratio=delta.ratio.clone())
    raise BadInput(f"The change of {delta.module} cannot be followed: it is a {type(delta).__name__}.")


def _parts(module: str, delta: Delta) -> dict[str, Tensor]:
    if isinstance(delta, LowRank):
        return {f"{module}.up": delta.up, f"{module}.down": delta.down}
    if isinstance(delta, Dora):
        return {**_parts(module, delta.low), f"{module}.ratio": delta.ratio}
    return {}


def _put_together(like: Delta, parts: Mapping[str, Tensor]) -> Delta:
    """The reverse of `_parts`."""
    up, down = parts[f"{like.module}.up"], parts[f"{like.module}.down"]
    if isinstance(like, Dora):
        return replace(like, low=replace(like.low, up=up, down=down), ratio=parts[f"{like.module}.ratio"])
    return LowRank(like.module, up, down, like.baseline)


@torch.no_grad()
def moving(model: Any, groups: Mapping[str, Group], *, whole: bool = True) -> list[Moving]:
    """Every matrix of the model's blocks that is trained, by the adapter that is active or itself.

    Raises BadInput where a group names a matrix that the model has not.
    """
    from peft import PeftModel

    known = dict(matrices(model))
    for name, group in groups.items():
        for module in group.places:
            if module not in known:
                raise BadInput(
                    f"The group '{name}' has places in {module}, which this model has not: it is of another model."
                )
    if isinstance(model, PeftModel):
        return list(_adapted(model, known))
    return list(_trained(model, known, groups, whole))


def _adapted(model: Any, known: Mapping[str, Tensor]) -> Iterator[Moving]:
    name, followed = model.active_adapter, set()
    for key, layer in lora_layers(model, name).items():
        for number, delta in enumerate(layer_deltas(layer, name, key)):
            followed.add(delta.module)

            def now(layer: Any = layer, key: str = key, number: int = number) -> Delta:
                return next(islice(layer_deltas(layer, name, key), number, None))

            def base(layer: Any = layer, module: str = delta.module) -> Tensor:
                inner = layer.get_base_layer()
                return dense_weight(inner) if is_quantised(inner) else known[module]

            yield _Adapted(now, base)
    if saved_modules(model, name):
        for module, delta in adapter_deltas(model, name).items():
            if module not in followed and isinstance(delta, Dense) and isinstance(delta.after, Tensor):
                yield _Copied(module, delta.after)


def _trained(
    model: Any, known: Mapping[str, Tensor], groups: Mapping[str, Group], whole: bool
) -> Iterator[Moving]:
    trained = {p.untyped_storage().data_ptr() for p in model.parameters() if p.requires_grad}
    for module, live in known.items():
        inside = any(part.isdigit() for part in module.split("."))
        if not inside or live.untyped_storage().data_ptr() not in trained:
            continue
        if whole:
            yield _Copied(module, live)
            continue
        shape = (live.shape[0], live.shape[1])
        ids = [_flat(group, module, shape) for group in groups.values() if len(group.of(module))]
        if ids:
            yield _Sampled(module, live, torch.cat(ids).unique())


@dataclass(frozen=True, eq=False)
class Followed:
    """One matrix and where in it is measured. names: ALL first where it is whole, then its groups, with their number n of
    weights and sum of squared weights. tiles: of rows, where the change is formed; one for all of it where it is not."""

    one: Moving
    names: tuple[str, ...]
    n: tuple[int, ...]
    weight_square: tuple[float, ...]
    tiled: bool
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True, eq=False)
class _Tile:
    """Places in output rows start to stop: ids, flat from the first of these rows, one group after another, `lengths` of
    each. own: the weights there as the training began, float64."""

    start: int
    stop: int
    ids: Int[Tensor, "place"]
    lengths: Int[Tensor, "group"]
    own: Float[Tensor, "place"]


@torch.no_grad()
def follow(one: Moving, groups: Mapping[str, Group]) -> Followed:
    """A matrix with the places of groups in it; BadInput where a group was made for one of another shape."""
    held = {name: _flat(g, one.module, one.shape) for name, g in groups.items() if len(g.of(one.module))}
    size, total = one.shape[0] * one.shape[1], sum(map(len, held.values()))
    tiled = one.whole and (isinstance(one, _Copied) or _PLACE_COST * total >= size)
    bounds = list(blocks(*one.shape)) if tiled else [(0, one.shape[0])]
    tiles = tuple(_tile(one, list(held.values()), *rows) for rows in bounds)
    squares = sum(_per_group(tile.own.square(), tile.lengths) for tile in tiles)
    everything = (
        [sum(float(one.began(*rows).square().sum()) for rows in blocks(*one.shape))] if one.whole else []
    )
    return Followed(
        one=one,
        names=((ALL,) if one.whole else ()) + tuple(held),
        n=((size,) if one.whole else ()) + tuple(map(len, held.values())),
        weight_square=(*everything, *torch.as_tensor(squares).tolist()),
        tiled=tiled,
        tiles=tiles,
    )


def _tile(one: Moving, held: Sequence[Int[Tensor, "n"]], start: int, stop: int) -> _Tile:
    width = one.shape[1]
    edges = torch.tensor([start * width, stop * width])
    cuts = [torch.searchsorted(ids, edges).tolist() for ids in held]
    parts = [ids[first:last] for ids, (first, last) in zip(held, cuts, strict=True)]
    ids = torch.cat([*parts, torch.empty(0, dtype=torch.int64)]).to(one.device)
    lengths = torch.tensor([last - first for first, last in cuts], dtype=torch.int64, device=one.device)
    return _Tile(start, stop, ids - start * width, lengths, one.began_at(ids // width, ids % width))


def _per_group(values: Float[Tensor, "place"], lengths: Int[Tensor, "group"]) -> Float[Tensor, "group"]:
    """Sums over neighbouring runs of so many values."""
    if not len(values):
        return torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    return torch.segment_reduce(values, "sum", lengths=lengths)


def _flat(group: Group, module: str, shape: tuple[int, int]) -> Int[Tensor, "n"]:
    """Flat ids of a group's weights in a matrix, ascending."""
    ids, most = group.of(module), shape[0] if group.unit == "rows" else shape[0] * shape[1]
    if int(ids.min()) < 0 or int(ids.max()) >= most:
        raise BadInput(
            f"The group '{group.name}' has places in {module} beyond its {shape[0]} x {shape[1]} weights: it is of another "
            "model."
        )
    if group.unit == "entries":
        return ids
    return (ids[:, None] * shape[1] + torch.arange(shape[1])).flatten()


class Meter:
    """The sums over all followed matrices. Places of many matrices are added up at once: on small ones most of the time
    would go into calls."""

    def __init__(self, followed: Sequence[Followed], *, dots: bool) -> None:
        self._dots = dots
        self._batches = list(_batches(followed, dots))
        self._width = sum(len(one.names) for one in followed)

    @torch.no_grad()
    def read(self) -> Float[Tensor, "two name"]:
        """For each name, matrix after matrix: squared change, and change times weight (NaN if not asked for), float64."""
        device = self._batches[0].lengths.device
        found = torch.zeros((2, self._width), dtype=torch.float64, device=device)
        for batch in self._batches:
            moved = torch.cat([part for item in batch.items for part in self._read(item, found)])
            found[0].index_add_(0, batch.columns, _per_group(moved.square(), batch.lengths))
            if batch.own is not None:
                found[1].index_add_(0, batch.columns, _per_group(moved * batch.own, batch.lengths))
        if not self._dots:
            found[1] = torch.nan
        return found

    def _read(self, item: _Item, found: Float[Tensor, "two name"]) -> Iterator[Float[Tensor, "place"]]:
        """The change at one matrix's places; sums over the whole of it go into `found`."""
        one, width, place = item.followed.one, item.followed.one.shape[1], item.place
        if not item.followed.tiled:
            if one.whole:
                self._read_whole(one, found[:, place])
            yield from (one.entries(tile.ids // width, tile.ids % width) for tile in item.followed.tiles)
            return
        delta = one.delta()
        for tile in item.followed.tiles:
            change = delta.tile(tile.start, tile.stop)
            found[0, place] += change.square().sum()
            if self._dots:
                found[1, place] += (change * one.began(tile.start, tile.stop)).sum()
            yield change.flatten().index_select(0, tile.ids)

    def _read_whole(self, one: Moving, found: Float[Tensor, "two"]) -> None:
        delta = one.delta()
        found[0] = delta.square()
        if self._dots:
            tiles = (delta.tile(*rows) * one.began(*rows) for rows in blocks(*one.shape))
            found[1] = sum(float(tile.sum()) for tile in tiles)


@dataclass(frozen=True, eq=False)
class _Item:
    """place: of the matrix's first name among all."""

    followed: Followed
    place: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """Matrices that are added up together. lengths, columns: of every run of places, and which name it counts for."""

    items: tuple[_Item, ...]
    lengths: Int[Tensor, "run"]
    columns: Int[Tensor, "run"]
    own: Float[Tensor, "place"] | None


def _batches(followed: Sequence[Followed], dots: bool) -> Iterator[_Batch]:
    waiting: list[_Item] = []
    place = count = 0
    for one in followed:
        waiting.append(_Item(one, place))
        place += len(one.names)
        count += sum(len(tile.ids) for tile in one.tiles)
        if count >= _TOGETHER:
            yield _batch(waiting, dots)
            waiting, count = [], 0
    if waiting:
        yield _batch(waiting, dots)


def _batch(items: Sequence[_Item], dots: bool) -> _Batch:
    runs, columns = [], []
    for item in items:
        first = item.place + (1 if item.followed.one.whole else 0)
        for tile in item.followed.tiles:
            runs.append(tile.lengths)
            columns.append(torch.arange(first, first + len(tile.lengths), device=tile.lengths.device))
    own = torch.cat([tile.own for item in items for tile in item.followed.tiles]) if dots else None
    return _Batch(tuple(items), torch.cat(runs), torch.cat(columns), own)
