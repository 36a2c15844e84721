"""Changes read from what is in memory: every changed matrix of a side of a Pair, or of an adapter in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import BadInput, unknown
from finetrace.models.adapters import lora_layers, saved_modules
from finetrace.models.assembly import BASE
from finetrace.models.head import bare
from finetrace.models.pair import Pair
from finetrace.weights.delta import Delta, LowRank, merge
from finetrace.weights.dense import Dense, same
from finetrace.weights.dora import dora
from finetrace.weights.quantised import baseline, is_quantised
from finetrace.weights.stacked import difference

Others = dict[str, tuple[Tensor, Tensor]]
# What PEFT calls the module inside one of its own.
_WRAPPERS = ("base_layer", "original_module", "token_adapter")


@torch.no_grad()
def deltas(pair: Pair, side: str = "tuned", *, of: str | None = None) -> dict[str, Delta]:
    """Module -> change, of every matrix of linear layers and fused experts that `side` changes, in the model's order.

    of: another side that it is counted from instead of the base; of two adapters, the ranks add up.
    All else that changes is in `others`, each parameter in one of the two: embeddings, biases, norms, and a head that
    is the embedding itself on both sides. An adapter's factors are read, not copied.
    """
    if of is None or pair.kind(of) == BASE:
        found = _side(pair, side)
    elif {pair.kind(side), pair.kind(of)} == {"full"}:
        found = _full_deltas(pair, of, side)
    else:
        after, before = _side(pair, side), _side(pair, of)
        found = {
            key: difference(after[key], before[key])
            if key in after and key in before
            else (after[key] if key in after else before[key].scaled(-1.0))
            for key in {**after, **before}
        }
    return {key: delta for key, delta in found.items() if delta.square() > 0}


@torch.no_grad()
def others(pair: Pair, side: str = "tuned") -> Others:
    """Parameter -> (before, after), of everything else that `side` changes: embeddings, biases, norms.

    Where the sides' vocabularies differ, rows of embeddings and heads are those of the tokens that both have.
    """
    kind = pair.kind(side)
    if kind == BASE:
        return {}
    if kind == "full":
        found = _full_others(pair, side)
    else:
        peft, name = pair.adapter(side)
        found = adapter_others(peft, name)
    return {key: (before, after) for key, (before, after) in found.items() if not same(before, after)}


def weight(pair: Pair, module: str) -> Float[Tensor, "out in"]:
    """The base's weight of a module as `deltas` names it, in the layout of `nn.Linear`; a view, not a copy."""
    with pair.open(BASE) as model:
        found = model_weight(model, module)
    if found is None:
        with pair.open(BASE) as model:
            known = [name for name, _ in matrices(model)]
        raise unknown("matrix", module, known)
    return found


def model_weight(model: Any, module: str) -> Float[Tensor, "out in"] | None:
    """The base weight of a module of a transformers or PEFT model; None where it has no such matrix."""
    return next((found for name, found in matrices(model) if name == module), None)


def matrices(model: Any) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
    """(name, weight [out, in]) of every linear layer and fused expert, as they are without adapters; views."""
    for name, module in _plain_modules(model):
        if isinstance(module, nn.Embedding):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if key == "weight" and parameter.ndim == 2:
                yield name, oriented(module, parameter.detach())
            elif parameter.ndim == 3:
                yield from _experts(module, f"{name}.{key}", parameter.detach())


def oriented(module: nn.Module, weight: Tensor) -> Tensor:
    """A module's weight in the layout [out, in]: a Conv1D's is turned over."""
    from transformers.pytorch_utils import Conv1D

    return weight.T if isinstance(module, Conv1D) else weight


def _experts(module: nn.Module, name: str, stack: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The matrices of a fused stack, one an expert, each [out, in]."""
    turned = bool(module.__dict__.get("is_transposed", False))
    for index, matrix in enumerate(stack):
        yield f"{name}[{index}]", matrix.T if turned else matrix


def _plain_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(name in the bare model, module) of every module that owns parameters, adapters' own left out."""
    for name, module in model.named_modules():
        if any(f".{own}" in f".{name}" for own in ("lora_", "modules_to_save", "trainable_tokens_")):
            continue
        yield plain_name(name), module


def plain_name(name: str) -> str:
    """A module's or parameter's name as it was before PEFT wrapped it."""
    parts = name.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part not in _WRAPPERS)


# An adapter's own.


@torch.no_grad()
def adapter_deltas(peft_model: Any, name: str = "default") -> dict[str, Delta]:
    """Module -> change, of every matrix that the adapter `name` of a PEFT model touches, changed yet or not.

    Factors are read as they are now: `LowRank.copy` keeps them while training goes on.
    """
    found: dict[str, Delta] = {}
    for key, layer in lora_layers(peft_model, name).items():
        found |= {delta.module: delta for delta in layer_deltas(layer, name, key)}
    for key, wrapper in saved_modules(peft_model, name).items():
        before, after = bare(wrapper), _replacement(wrapper, name)
        if after is None or isinstance(before, nn.Embedding):
            continue
        old, new = _own(before).get("weight"), _own(after).get("weight")
        if old is not None and new is not None and old.ndim == 2:
            module = plain_name(key)
            found[module] = Dense(module, oriented(before, old), oriented(after, new))
    return found


def layer_deltas(layer: Any, name: str, module: str) -> Iterator[Delta]:
    """The changes of one LoRA layer of PEFT: one matrix, or one of each fused expert; none of an embedding."""
    if name in layer.lora_embedding_A or name not in layer.lora_A:
        return
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    if down.ndim != 2:
        return
    scaling, inner = float(layer.scaling[name]), layer.get_base_layer()
    module = plain_name(module)
    parameter = layer.__dict__.get("parameter_name")
    if parameter is not None:
        yield from _parameter_deltas(layer, name, module, parameter)
        return
    low = _low_rank(module, up, down, scaling, _counted_from(inner))
    if name not in layer.lora_variant or name not in layer.lora_magnitude_vector:
        yield low
        return
    base = oriented(inner, dense_weight(inner))
    yield dora(module, base, low, layer.lora_magnitude_vector[name].weight)


def embedding_delta(layer: Any, name: str, module: str) -> Delta:
    """The change of an embedding with an adapter, turned over: [d, vocab], as its factors and magnitudes are kept."""
    up, down = layer.lora_embedding_B[name], layer.lora_embedding_A[name]
    low = _low_rank(plain_name(module), up, down, float(layer.scaling[name]))
    if name not in layer.lora_variant or name not in layer.lora_magnitude_vector:
        return low
    magnitude = layer.lora_magnitude_vector[name].weight
    return dora(low.module, _own(layer.get_base_layer())["weight"].T, low, magnitude)


def layer_weight(layer: Any) -> Tensor:
    """The base weight under a LoRA layer, as it is stored: [out, in], a Conv1D's [in, out], or a stack of experts."""
    if layer.__dict__.get("parameter_name") is not None:
        return layer.get_param().detach()
    return dense_weight(layer.get_base_layer())


def dense_weight(module: nn.Module) -> Tensor:
    """A module's weight in numbers: itself, or what a quantised one computes with."""
    return baseline(module).tensor() if is_quantised(module) else _own(module)["weight"]


def _counted_from(module: nn.Module) -> str:
    """ "dequantised" for a layer that bitsandbytes holds in 4 or 8 bits, which is what an adapter on it adds to."""
    return "dequantised" if is_quantised(module) else "base"


def _low_rank(module: str, up: Tensor, down: Tensor, scaling: float, baseline: str = "base") -> LowRank:
    up, down = (x.detach() if x.dtype == torch.float64 else x.detach().float() for x in (up, down))
    return LowRank(module, up * scaling, down, baseline)


def _parameter_deltas(layer: Any, name: str, module: str, key: str) -> Iterator[Delta]:
    """Of an adapter on a bare parameter, named as `matrices` names it: a router's weight, or a stack of experts, whose
    factors PEFT keeps side by side: rows of A by expert, columns of B by rank, then expert."""
    scaling, parameter = float(layer.scaling[name]), layer.get_param()
    down, up = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    if parameter.ndim == 2:
        yield _low_rank(module if key == "weight" else f"{module}.{key}", up, down, scaling)
        return
    experts = parameter.shape[0]
    down = down.reshape(experts, -1, down.shape[1])
    up = up.reshape(up.shape[0], -1, experts)
    for index in range(experts):
        yield _low_rank(f"{module}.{key}[{index}]", up[:, :, index], down[index], scaling)


@torch.no_grad()
def adapter_others(peft_model: Any, name: str = "default") -> Others:
    """Parameter -> (before, after), of the embeddings, biases and whole modules that the adapter `name` touches.

    An embedding with an adapter is added up here: [vocab, d] is formed whole.
    """
    found: Others = {}
    for key, layer in lora_layers(peft_model, name).items():
        module, inner = plain_name(key), layer.get_base_layer()
        if name in layer.lora_embedding_A:
            before, change = _own(inner)["weight"], embedding_delta(layer, name, module)
            found[f"{module}.weight"] = before, merge(before, change.tile(0, change.shape[0]).T)
        elif layer.lora_A[name].weight.ndim != 2:
            before = _own(inner)["weight"]
            found[f"{module}.weight"] = before, merge(before, layer.get_delta_weight(name))
        if name in layer.lora_B and layer.lora_B[name].bias is not None:
            extra = float(layer.scaling[name]) * layer.lora_B[name].bias.detach()
            before = _own(inner).get("bias", torch.zeros_like(extra))
            found[f"{module}.bias"] = before, before + extra
    for key, wrapper in saved_modules(peft_model, name).items():
        found |= _replaced(wrapper, name, plain_name(key))
    return found


def _replaced(wrapper: Any, name: str, module: str) -> Others:
    before = bare(wrapper)
    after = _replacement(wrapper, name)
    old = _own(before)
    if after is None:
        new: Mapping[str, Tensor] = {"weight": wrapper.token_adapter.get_merged_weights([name]).detach()}
    else:
        new = dict(after.named_parameters())
        old = dict(before.named_parameters())
    kept = {k: v for k, v in new.items() if isinstance(before, nn.Embedding) or v.ndim != 2 or k != "weight"}
    return {
        f"{module}.{key}": (old[key].detach(), tensor.detach()) for key, tensor in kept.items() if key in old
    }


def _replacement(wrapper: Any, name: str) -> nn.Module | None:
    """The module that the adapter puts in the place of the base's; None where it retrains some rows only."""
    from peft.utils.other import ModulesToSaveWrapper

    return wrapper.modules_to_save[name] if isinstance(wrapper, ModulesToSaveWrapper) else None


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach() for key, tensor in module.named_parameters(recurse=False)}


# A side of a pair.


def _side(pair: Pair, side: str) -> dict[str, Delta]:
    kind = pair.kind(side)
    if kind == BASE:
        return {}
    if kind == "full":
        return _full_deltas(pair, BASE, side)
    peft, name = pair.adapter(side)
    return adapter_deltas(peft, name)


def _full_deltas(pair: Pair, before: str, after: str) -> dict[str, Delta]:
    with pair.open(before) as one, pair.open(after) as two:
        old, new = dict(matrices(one)), dict(matrices(two))
        tied = _tied(one) & _tied(two)
    _require_same_modules(old, new, after)
    return {
        key: Dense(key, old[key], new[key])
        for key in old
        if key not in tied and old[key].shape == new[key].shape and not same(old[key], new[key])
    }


def _tied(model: Any) -> set[str]:
    """Matrices that are the input embedding itself."""
    tokens = _own(bare(model.get_input_embeddings()))["weight"].data_ptr()
    return {name for name, found in matrices(model) if found.data_ptr() == tokens}


def _require_same_modules(old: Mapping[str, Tensor], new: Mapping[str, Tensor], side: str) -> None:
    apart = sorted(set(old) ^ set(new))
    if apart:
        where = "the base" if apart[0] in old else f"'{side}'"
        raise BadInput(f"The sides are not of one architecture: only {where} has the matrix {apart[0]}.")


def _full_others(pair: Pair, side: str) -> Others:
    with pair.open(BASE) as one, pair.open(side) as two:
        old, new = _all_parameters(one), _all_parameters(two)
        deltas_hold = {f"{name}.weight" for name, _ in matrices(two)}
        tied = {f"{name}.weight" for name in _tied(one) & _tied(two)}
        stacks = {name.partition("[")[0] for name, _ in matrices(two) if name.endswith("]")}
    found: Others = {}
    for key, after in new.items():
        before = old.get(key)
        if (
            before is None
            or key in stacks
            or key in tied
            or (key in deltas_hold and before.shape == after.shape)
        ):
            continue
        if before.shape != after.shape:
            before, after = before[_rows(pair, BASE, before)], after[_rows(pair, side, after)]
        found[key] = before, after.to(before.device)
    return found


def _rows(pair: Pair, side: str, tensor: Tensor) -> Tensor:
    """Ids of the shared vocabulary in a side's embedding or head."""
    rows = pair.rows(side)
    return torch.arange(pair.vocab_size, device=tensor.device) if rows is None else rows.to(tensor.device)


def _all_parameters(model: Any) -> dict[str, Tensor]:
    """Parameter -> tensor, under bare names, adapters' own left out; a tied one once."""
    return {
        f"{name}.{key}": tensor.detach()
        for name, module in _plain_modules(model)
        for key, tensor in module.named_parameters(recurse=False)
    }
