"""The effect check: does the tuned side change anything at all? Silent no-ops are the commonest false "safe"."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetrace.core.errors import ModelError
from finetrace.models.adapters import lora_layers, saved_modules
from finetrace.models.assembly import BASE
from finetrace.models.head import bare
from finetrace.models.pair import Pair
from finetrace.weights.read import embedding_delta, layer_deltas, layer_weight, plain_name


@dataclass(frozen=True)
class Effect:
    """What a side changes of the base's weights.

    status: "applied", "partial" (some keys of the adapter's file did not land, or places stayed empty), "no-op", or
    "identical" (the side is the base itself). changed, total: modules of an adapter, tensors of a full checkpoint.
    relative_norm: Frobenius norm of all changes over that of the base's weights in the same modules or tensors.
    """

    side: str
    status: str
    changed: int
    total: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    relative_norm: float = 0.0
    unit: str = "modules"

    def describe(self) -> str:
        """One or two sentences for the pre-flight."""
        if self.status == "identical":
            return "The base is compared with itself."
        if self.status == "no-op":
            return f"Nothing changes: 0 of {self.total} {self.unit} differ from the base.{self._lost()}"
        size = (
            f"by {self.relative_norm:.2%}" if self.relative_norm >= 1e-4 else f"by {self.relative_norm:.1e}"
        )
        return f"{self.changed} of {self.total} {self.unit} change, {size} of their norm.{self._lost()}"

    def _lost(self) -> str:
        parts = []
        if self.unexpected:
            parts.append(
                f" {len(self.unexpected)} keys of the file have no place in the model, e.g. {self.unexpected[0]}."
            )
        if self.missing:
            parts.append(f" {len(self.missing)} places stay empty, e.g. {self.missing[0]}.")
        return "".join(parts)


@dataclass(frozen=True)
class _Change:
    """Squared Frobenius norms of a module's change and of its base weight, in float64."""

    changed: bool
    delta: float
    base: float


def effect(pair: Pair, side: str = "tuned") -> Effect:
    """What `side` changes, exactly: a single changed number counts."""
    kind = pair.kind(side)
    if kind == BASE:
        return Effect(side, "identical", 0, 0)
    if kind == "full":
        return _full_effect(pair, side)
    peft, name = pair.adapter(side)
    changes = {key: _layer_change(layer, name) for key, layer in lora_layers(peft, name).items()}
    changes |= {key: _saved_change(wrapper, name) for key, wrapper in saved_modules(peft, name).items()}
    fit = pair.fit(side)
    missing, unexpected = ((), ()) if fit is None else (fit.missing, fit.unexpected)
    changed = sum(change.changed for change in changes.values())
    status = "no-op" if not changed else "partial" if missing or unexpected else "applied"
    return Effect(side, status, changed, len(changes), missing, unexpected, _relative(changes))


def require_effect(found: Effect) -> None:
    """A ModelError for a side that changes nothing."""
    if found.status != "no-op":
        return
    what = "The adapter" if found.unit == "modules" else "The full checkpoint"
    name = "" if found.side == "tuned" else f" '{found.side}'"
    lost = (*found.unexpected[:1], *found.missing[:1])
    if lost:
        why = f"its file's keys did not land in the model (e.g. {lost[0]}): it was made for another architecture"
    elif found.unit == "modules":
        why = f"the product of its factors is zero in all {found.total} modules: it was saved before training"
    else:
        why = f"all {found.total} tensors are the base's own, bit for bit"
    raise ModelError(f"{what}{name} changes nothing: {why}. Give the checkpoint that training wrote.")


def _relative(changes: Mapping[str, _Change]) -> float:
    base = sum(change.base for change in changes.values())
    return math.sqrt(sum(change.delta for change in changes.values()) / base) if base > 0 else 0.0


@torch.inference_mode()
def _layer_change(layer: Any, name: str) -> _Change:
    """A LoRA layer's change, from its factors."""
    if name in layer.lora_embedding_A:
        base, delta = _square(layer.get_base_layer().weight), embedding_delta(layer, name, "").square()
    elif layer.lora_A[name].weight.ndim == 2:
        base = _square(layer_weight(layer))
        delta = sum(found.square() for found in layer_deltas(layer, name, ""))
    else:
        base, delta = _square(layer.get_base_layer().weight), _square(layer.get_delta_weight(name))
    bias = None if name not in layer.lora_B else layer.lora_B[name].bias
    extra = 0.0 if bias is None else float(layer.scaling[name]) ** 2 * _square(bias)
    return _Change(delta + extra > 0.0, delta + extra, base)


@torch.inference_mode()
def _saved_change(wrapper: Any, name: str) -> _Change:
    """The change of a module that the adapter replaces as a whole, or of some of its rows."""
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(wrapper, ModulesToSaveWrapper):
        new: Mapping[str, Tensor] = dict(wrapper.modules_to_save[name].named_parameters())
    else:
        new = {"weight": wrapper.token_adapter.get_merged_weights([name])}
    return _compare(new, dict(bare(wrapper).named_parameters()))


def _full_effect(pair: Pair, side: str) -> Effect:
    """Every tensor of a full checkpoint against the base's, one at a time."""
    base, other = (pair.side(name) for name in (BASE, side))
    with base.open() as one, other.open() as two:
        ours = {plain_name(key): tensor for key, tensor in one.named_parameters()}
        changes = {
            key: _compare({"": tensor}, {"": ours[key]} if key in ours else {})
            for key, tensor in two.named_parameters()
            if ".lora_" not in key and ".modules_to_save." not in key
        }
    changed = sum(change.changed for change in changes.values())
    status = "applied" if changed else "no-op"
    return Effect(side, status, changed, len(changes), relative_norm=_relative(changes), unit="tensors")


@torch.inference_mode()
def _compare(new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> _Change:
    changed, delta, base = False, 0.0, 0.0
    for key, tensor in new.items():
        before = old.get(key)
        if before is None or before.shape != tensor.shape:
            return _Change(True, _square(tensor), _square(before) if before is not None else 0.0)
        base += _square(before)
        if before is tensor or torch.equal(before, tensor.to(before.device)):
            continue
        changed = True
        delta += sum(_square(a.to(b.device).double() - b.double()) for a, b in _pieces(tensor, before))
    return _Change(changed, delta, base)


def _pieces(one: Tensor, other: Tensor) -> list[tuple[Tensor, Tensor]]:
    flat = one.reshape(-1), other.reshape(-1)
    return list(zip(*(tensor.split(1 << 22) for tensor in flat), strict=True))


def _square(tensor: Tensor) -> float:
    """Squared Frobenius norm, summed in float64."""
    return sum(float(piece.double().square().sum()) for piece in tensor.reshape(-1).split(1 << 22))
