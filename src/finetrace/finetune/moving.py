"""The matrices that a training moves: what each began as, how far it is from there, and sums over places in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["ALL", "Moving", "Places", "moving", "place", "sums"]

ALL = "all"
# Reading one place from the factors costs as much as this many entries of their product.
_PLACE_COST = 4


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
class Places:
    """Where in one matrix is measured. names: ALL first where the matrix is whole, then its groups, with their number n of
    weights and sum of squared weights. rows, columns: ascending; of: which name each belongs to. own: its weights, if
    inner products are wanted. tiled: whether the change is formed a few rows at a time; cuts: where each tile begins."""

    names: tuple[str, ...]
    n: tuple[int, ...]
    weight_square: tuple[float, ...]
    rows: Int[Tensor, "place"]
    columns: Int[Tensor, "place"]
    of: Int[Tensor, "place"]
    own: Float[Tensor, "place"] | None
    whole: bool
    tiled: bool
    cuts: tuple[int, ...]


@torch.no_grad()
def place(one: Moving, groups: Mapping[str, Group], *, dots: bool) -> Places:
    """The places of groups in one matrix; BadInput where a group was made for a matrix of another shape."""
    held = {name: _flat(g, one.module, one.shape) for name, g in groups.items() if len(g.of(one.module))}
    none = torch.empty(0, dtype=torch.int64)
    names = ((ALL,) if one.whole else ()) + tuple(held)
    sizes = ((one.shape[0] * one.shape[1],) if one.whole else ()) + tuple(map(len, held.values()))
    ids, order = torch.cat([*held.values(), none]).sort(stable=True)
    of = torch.cat([torch.full((len(part),), names.index(name)) for name, part in held.items()] or [none])[
        order
    ]
    tiles = torch.tensor([start * one.shape[1] for start, _ in blocks(*one.shape)])
    cuts = (*torch.searchsorted(ids, tiles).tolist(), len(ids))
    ids, of = ids.to(one.device), of.to(one.device)
    rows, columns = ids // one.shape[1], ids % one.shape[1]
    own = one.began_at(rows, columns)
    squares = torch.zeros(len(names), dtype=torch.float64, device=one.device).index_add_(0, of, own.square())
    if one.whole:
        squares[0] = sum(float(one.began(*bounds).square().sum()) for bounds in blocks(*one.shape))
    dense = isinstance(one, _Copied) or _PLACE_COST * len(ids) >= one.shape[0] * one.shape[1]
    return Places(
        names=names,
        n=sizes,
        weight_square=tuple(squares.tolist()),
        rows=rows,
        columns=columns,
        of=of,
        own=own if dots else None,
        whole=one.whole,
        tiled=one.whole and dense,
        cuts=cuts,
    )


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


@torch.no_grad()
def sums(one: Moving, places: Places) -> Float[Tensor, "two name"]:
    """Over the places of each name, now: squared change, and change times weight (NaN if not asked for), float64."""
    found = torch.zeros((2, len(places.names)), dtype=torch.float64, device=one.device)
    if places.own is None:
        found[1] = torch.nan
    if places.tiled:
        _by_tiles(one, places, found)
    else:
        _by_places(one, places, found)
    return found


def _by_tiles(one: Moving, places: Places, found: Float[Tensor, "two name"]) -> None:
    delta = one.delta()
    for number, (start, stop) in enumerate(blocks(*one.shape)):
        change = delta.tile(start, stop)
        part = slice(places.cuts[number], places.cuts[number + 1])
        moved = change[places.rows[part] - start, places.columns[part]]
        found[0].index_add_(0, places.of[part], moved.square())
        found[0, 0] += change.square().sum()
        if places.own is not None:
            found[1].index_add_(0, places.of[part], moved * places.own[part])
            found[1, 0] += (change * one.began(start, stop)).sum()


def _by_places(one: Moving, places: Places, found: Float[Tensor, "two name"]) -> None:
    moved = one.entries(places.rows, places.columns)
    found[0].index_add_(0, places.of, moved.square())
    if places.own is not None:
        found[1].index_add_(0, places.of, moved * places.own)
    if not places.whole:
        return
    delta = one.delta()
    found[0, 0] = delta.square()
    if places.own is not None:
        # Adapters only: others are read by tiles.
        found[1, 0] = sum(
            float((delta.tile(*bounds) * one.began(*bounds)).sum()) for bounds in blocks(*one.shape)
        )
