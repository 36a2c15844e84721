"""The base and plain LoRA adapters on it in one batch: rows of one side see that side's change, the others' do not.

PEFT has this too (`adapter_names`), but an interrupted forward leaves its selection behind and every later answer is
silently another adapter's. Here all adapters are off, as at rest, and what each adds to a layer's output is added by a
hook that is gone when the block ends, whatever ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from finetrace.core.errors import ModelError
from finetrace.models import adapters
from finetrace.models.assembly import BASE

if TYPE_CHECKING:
    from finetrace.models.pair import Pair

__all__ = ["together", "why_apart"]

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def why_apart(pair: Pair, sides: Sequence[str]) -> str | None:
    """Why these sides cannot share a batch, or None if they can."""
    config = pair.config(BASE).to_dict()
    if any(config.get(key) for key in _EXPERTS):
        return "a mixture of experts shows its layers other rows than the batch's"
    for side in sides:
        if pair.kind(side) == BASE:
            continue
        if pair.kind(side) == "full":
            return f"'{side}' is a full checkpoint, not an adapter"
        alignment = pair.alignment(side)
        if alignment is not None and alignment.to_side is not None:
            return f"'{side}' has token ids of its own"
        reason = _not_plain(*pair.adapter(side))
        if reason is not None:
            return f"'{side}' {reason}"
    return None


def _not_plain(peft: Any, name: str) -> str | None:
    if adapters.saved_modules(peft, name):
        return "replaces or retrains whole modules"
    layers = adapters.lora_layers(peft, name)
    if any(name in layer.lora_variant for layer in layers.values()):
        return "is a DoRA adapter (or alike)"
    for layer in layers.values():
        if name not in layer.lora_A or not _plain(layer.lora_A[name]) or not _plain(layer.lora_B[name]):
            return "changes more than linear layers"
    return None


def _plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None


@contextmanager
def together(pair: Pair, sides: Sequence[str]) -> Iterator[Any]:
    """The shared transformers model inside, for batches of one part a side: the first n rows are the first side's, the
    next n the second's. A ModelError for sides that cannot share a batch, and in training mode."""
    reason = why_apart(pair, sides)
    if reason is not None:
        raise ModelError(f"These sides cannot share a batch: {reason}.")
    held = [pair.adapter(side) if pair.kind(side) == "adapter" else None for side in sides]
    peft = next((one[0] for one in held if one is not None), None)
    names = [None if one is None else one[1] for one in held]
    handles: list[Any] = []
    with pair.open(BASE) as model:
        if model.training:
            raise ModelError("Sides share a batch only for reading: the model is in training mode.")
        layers = {} if peft is None else _layers(peft, [name for name in names if name is not None])
        _refuse_left_over(layers)
        try:
            rows = _Rows(len(sides))
            handles.append(model.get_decoder().register_forward_pre_hook(rows.see, with_kwargs=True))
            handles += [layer.register_forward_hook(_adding(names, rows)) for layer in layers.values()]
            yield model
        finally:
            for handle in handles:
                handle.remove()


def _layers(peft: Any, names: Sequence[str]) -> dict[str, Any]:
    return {key: layer for name in names for key, layer in adapters.lora_layers(peft, name).items()}


def _refuse_left_over(layers: dict[str, Any]) -> None:
    for key, layer in layers.items():
        if layer._forward_pre_hooks:
            raise ModelError(
                f"{key} still has a hook of a forward that was interrupted, which may choose another adapter than the "
                "one that is asked for: call pair.release() and try again."
            )


class _Rows:
    """How many rows the running batch has, told by the decoder's own input."""

    def __init__(self, sides: int) -> None:
        self._sides, self._now = sides, 0

    def see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._now = len(kwargs["input_ids"])

    def each(self, seen: Tensor) -> int:
        if len(seen) != self._now or self._now % self._sides:
            raise ModelError(
                f"A layer saw {len(seen)} rows of a batch of {self._now}: this architecture cannot mix sides in one batch."
            )
        return self._now // self._sides


def _adding(names: Sequence[str | None], rows: _Rows) -> Callable[[Any, Any, Tensor], Tensor]:
    def hook(layer: Any, args: Any, output: Tensor) -> Tensor:
        seen, each = args[0], rows.each(args[0])
        for place, name in enumerate(names):
            if name is None or name not in layer.lora_A:
                continue
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            mine = slice(place * each, (place + 1) * each)
            added = F.linear(F.linear(seen[mine].to(down.device, down.dtype), down), up)
            output[mine].add_(added.to(output.dtype), alpha=layer.scaling[name])
        return output

    return hook
