"""What a given change of a group's drift does: the model as if that drift had been larger or smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import BadInput
from finetrace.models.assembly import TUNED
from finetrace.models.pair import Pair
from finetrace.weights.delta import Delta
from finetrace.weights.groups import Group
from finetrace.weights.read import plain_name

Extra = Callable[[Tensor], Tensor]


@contextmanager
def group_scaled(
    model: Any, deltas: Mapping[str, Delta], group: Group, factor: float, *, side: str = TUNED
) -> Iterator[Any]:
    """The model computes with W + D + (factor - 1) D on the group's weights inside; yields it.

    model: a Pair, whose `side` is opened, or a transformers or PEFT model that holds W + D. No weight is touched: what is
    to be added is computed beside each module, in float32, from the group's entries of D alone. While adapters are
    switched off nothing is added. It is all gone afterwards, whatever happens inside.
    """
    wanted = {module: delta for module, delta in deltas.items() if len(group.of(module))}
    with ExitStack() as stack:
        opened = stack.enter_context(model.open(side)) if isinstance(model, Pair) else model
        places = _modules(opened, wanted)
        for name, delta in wanted.items():
            extra = _extra(delta, group, factor - 1.0)
            handle = places[name].register_forward_hook(_adding(extra, places[name]))
            stack.callback(handle.remove)
        yield opened


def _modules(model: Any, wanted: Mapping[str, Delta]) -> dict[str, nn.Module]:
    """Name -> the outermost module of that name: with its adapter, if it has one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        found.setdefault(plain_name(name), module)
    for name in wanted:
        if name not in found:
            raise BadInput(
                f"The drift of {name} cannot be scaled alone: the model has no module of that name "
                "(an expert of a fused stack, or another model)."
            )
    return found


def _extra(delta: Delta, group: Group, factor: float) -> Extra:
    """Inputs -> what is to be added to the outputs, float32: the group's part of the change, times `factor`."""
    rows, columns = group.rows_columns(delta.module, delta.shape)
    if columns is None:

        def whole_rows(x: Float[Tensor, "*any in"]) -> Float[Tensor, "*any out"]:
            mask = torch.zeros(delta.shape[0], device=x.device)
            mask[rows.to(x.device)] = factor
            return delta.apply(x.float()) * mask

        return whole_rows
    with torch.no_grad():
        values = delta.entries(rows, columns).float().cpu() * factor
    ids = group.of(delta.module)

    def entries(x: Float[Tensor, "*any in"]) -> Float[Tensor, "*any out"]:
        nonlocal ids, values
        ids, values = ids.to(x.device), values.to(x.device)
        # Dense for this call alone: torch's sparse tensors warn, differently in every release, and are slower at these densities.
        part = torch.zeros(delta.shape, device=x.device)
        part.view(-1)[ids] = values
        return nn.functional.linear(x.float(), part)

    return entries


def _adding(extra: Extra, module: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    def hook(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if isinstance(module, BaseTunerLayer) and (module.disable_adapters or not module.active_adapters):
            return output
        return (output.float() + extra(given[0])).to(output.dtype)

    return hook
