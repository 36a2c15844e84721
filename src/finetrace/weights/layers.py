"""The linear layers of a model's blocks, by name, whatever adapters are around them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import ModelError, unknown
from finetrace.models.architecture import anatomy
from finetrace.weights.read import dense_weight, oriented, plain_name

# What adapters put beside a layer.
_ADAPTERS = (".lora_", ".modules_to_save.", ".trainable_tokens_")


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block, without any adapter around it. shape: (out, in), whatever its own layout."""

    block: int
    module: nn.Module
    shape: tuple[int, int]


def linear_layers(
    model: Any, wanted: Collection[str] | None = None
) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Name -> linear layer inside the blocks, in the model's order; and the matrices in them that are none, by name."""
    parts = anatomy(unwrapped(model))
    where = {block: index for index, block in enumerate(parts.blocks)}
    named = [(name, where[m]) for name, m in parts.model.named_modules() if m in where]
    layers: dict[str, Layer] = {}
    skipped: list[str] = []
    for prefix, index in named:
        for name, module in parts.blocks[index].named_modules(prefix=prefix):
            if any(own in f".{name}." for own in _ADAPTERS):
                continue
            shape = _shape(module)
            if shape is not None:
                layers[plain_name(name)] = Layer(index, module, shape)
                continue
            own = module.named_parameters(recurse=False)
            skipped += [plain_name(f"{name}.{key}") for key, tensor in own if tensor.ndim >= 2]
    if not layers:
        raise ModelError(
            f"{type(parts.model).__name__} has no linear layers in its blocks that could be scored"
            + (f"; what it has is of another kind: {skipped[0]}." if skipped else ".")
        )
    if wanted is None:
        return layers, tuple(skipped)
    for name in wanted:
        if name not in layers:
            raise unknown("linear layer in a block", name, layers)
    return {name: layer for name, layer in layers.items() if name in set(wanted)}, tuple(skipped)


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT one, its adapters left on it."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _shape(module: nn.Module) -> tuple[int, int] | None:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    return (module.weight.shape[1], module.weight.shape[0]) if isinstance(module, Conv1D) else None


def weight_of(module: nn.Module) -> Float[Tensor, "out in"]:
    """Its weight in the layout of `nn.Linear`, dequantised if it is quantised."""
    return oriented(module, dense_weight(module)).detach()
