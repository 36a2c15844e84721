"""Where an update acts: each module that it changes, and what it adds to that module's output on given inputs.

Every change is written as an addition to a module's output that is linear in the update, so that the model at
W + a (W' - W) is the base plus a times it, the derivative along the path is the inner product of that addition with the
gradient of the output, and no weight is ever touched.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from finetrace.core.errors import ModelError
from finetrace.models.head import bare
from finetrace.weights.delta import Delta, tiles
from finetrace.weights.dense import Dense
from finetrace.weights.read import plain_name

Before = Tensor
After = Tensor
Addition = Callable[[Tensor], Tensor]
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Place:
    """One module that the update changes.

    name: in the base model, e.g. "model.layers.3.self_attn.q_proj". module: what is hooked. addition: inputs -> what the
    whole update adds to the output, differentiable in floating-point inputs. A tensor that two modules share (a head
    tied to the embedding) is two places. turns: see `with_turns`.
    """

    name: str
    module: nn.Module
    addition: Addition
    turns: tuple[Addition, ...] = ()

    @property
    def layer(self) -> int | None:
        return layer_of(self.name)

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2]


def layer_of(name: str) -> int | None:
    """The block that a module is in, None for embeddings, the final norm and the head."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def places(
    model: nn.Module, deltas: Mapping[str, Delta], others: Mapping[str, tuple[Before, After]]
) -> list[Place]:
    """All places of an update, in the order of the model.

    model: the base. deltas: module name -> change of its weight matrix. others: parameter name -> (before, after) of
    everything else that the update changes (see `with_tied`). A change that cannot be written
    as an addition to a module's output is a ModelError.
    """
    additions: dict[str, list[Addition]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, delta in deltas.items():
        additions.setdefault(name, []).append(_matrix(_find(modules, name), delta))
    for key, (before, after) in others.items():
        name, _, parameter = key.rpartition(".")
        addition = _parameter(key, _find(modules, name), parameter, before, after)
        additions.setdefault(name, []).append(addition)
    return [Place(name, modules[name], _sum(additions[name])) for name in modules if name in additions]


def with_tied(
    others: Mapping[str, tuple[Before, After]], deltas: Mapping[str, Delta], base: nn.Module, tuned: nn.Module
) -> dict[str, tuple[Before, After]]:
    """`others` of a full checkpoint, with a tensor that several modules share on both sides under each one's name."""
    ours, theirs = _shared(base), _shared(tuned)
    found = dict(others)
    for key, pair in others.items():
        for twin in ours.get(key, frozenset()) & theirs.get(key, frozenset()):
            if twin.rpartition(".")[0] not in deltas:
                found.setdefault(twin, pair)
    return found


def _shared(model: nn.Module) -> dict[str, frozenset[str]]:
    """Parameter -> every name of the same tensor."""
    names: dict[int, set[str]] = {}
    for key, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), set()).add(plain_name(key))
    return {key: frozenset(keys) for keys in names.values() for key in keys}


def _find(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    if name in modules:
        return modules[name]
    if "[" in name:
        raise ModelError(
            f"The update changes {name}, one of experts that are computed together: safety_attribution cannot divide "
            "their effect yet."
        )
    raise ModelError(f"The update changes {name}, which the base does not have: its effect cannot be taken.")


def _sum(parts: list[Addition]) -> Addition:
    if len(parts) == 1:
        return parts[0]
    first, *rest = parts

    def addition(inputs: Tensor) -> Tensor:
        total = first(inputs)
        for part in rest:
            total = total + part(inputs)
        return total

    return addition


def _matrix(module: nn.Module, delta: Delta) -> Addition:
    inner = bare(module)
    if isinstance(inner, nn.Embedding):
        return lambda ids: _embedded(inner, _rows(delta, ids, inner.weight.dtype))
    return _whole(delta) if isinstance(delta, Dense) else delta.apply


def _whole(delta: Dense) -> Addition:
    """A change without factors, formed once: every pass would hold as much of it for its gradients anyway."""
    held: list[Tensor] = []

    def addition(inputs: Tensor) -> Tensor:
        if not held:
            parts = [tile.to(inputs.dtype) for _, _, tile in tiles(delta)]
            held.append(torch.cat(parts).to(inputs.device))
        return nn.functional.linear(inputs, held[0])

    return addition


def _rows(delta: Delta, ids: Tensor, dtype: torch.dtype) -> Float[Tensor, "*any d_model"]:
    """The change of each token's row of an embedding [vocab, d_model]."""
    unique, where = ids.unique(return_inverse=True)
    width = delta.shape[1]
    rows = unique.repeat_interleave(width)
    columns = torch.arange(width, device=ids.device).repeat(len(unique))
    return delta.entries(rows, columns).reshape(-1, width).to(dtype)[where]


def _embedded(module: nn.Module, rows: Tensor) -> Tensor:
    """Rows as the embedding gives them out (Gemma scales them)."""
    scale: Any = dict(module.named_buffers(recurse=False)).get("embed_scale")
    return rows if scale is None else rows * scale.to(rows.dtype)


def _parameter(key: str, module: nn.Module, parameter: str, before: Before, after: After) -> Addition:
    """What changing one parameter adds to the output of a module that is linear in it."""
    inner = bare(module)
    own = dict(inner.named_parameters(recurse=False)).get(parameter)
    if before.shape != after.shape or (own is not None and own.shape != before.shape):
        raise ModelError(
            f"{key} has another shape in the tuned model than in the base (another vocabulary): there is no straight "
            "path between the two."
        )
    if not _is_linear_in(inner):
        raise ModelError(
            f"The update changes {key} of a {type(inner).__name__}, in which the output is not linear: "
            "safety_attribution cannot divide its effect."
        )
    if parameter == "bias":
        step = (after - before).to(before.dtype)
        return lambda inputs: step.expand(*inputs.shape[:-1], *step.shape)
    old, new = (_twin(inner, parameter, tensor.to(before.dtype)) for tensor in (before, after))
    return lambda inputs: new(inputs) - old(inputs)


def _is_linear_in(module: nn.Module) -> bool:
    """Whether the module's output is linear (up to a constant) in each of its own parameters."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm | Conv1D):
        return True
    return type(module).__name__.endswith("RMSNorm")


def _twin(module: nn.Module, parameter: str, tensor: Tensor) -> Callable[[Tensor], Tensor]:
    """The module's computation with another parameter; the module is not touched, and its hooks are not run."""
    twin = copy.copy(module)
    twin.__dict__["_parameters"] = dict(module._parameters) | {parameter: tensor}
    return twin.forward


def turned(place: Place, generator: torch.Generator) -> Addition:
    """The same change with random signs on the rows and columns of its matrix (of a vector: on its entries).

    Sizes, spectrum and all magnitudes stay, and its inner product with any gradient is 0 in expectation. The signs are
    drawn on first use, when the widths are known.
    """
    drawn: dict[str, Tensor] = {}

    def signs(key: str, values: Tensor) -> Tensor:
        if key not in drawn:
            coins = torch.randint(0, 2, values.shape[-1:], generator=generator)
            drawn[key] = (coins * 2 - 1).to(values.device, values.dtype)
        return drawn[key]

    def addition(inputs: Tensor) -> Tensor:
        inputs = inputs * signs("in", inputs) if inputs.is_floating_point() else inputs
        outputs = place.addition(inputs)
        return outputs * signs("out", outputs)

    return addition


def with_turns(found: Sequence[Place], draws: int, seed: int) -> list[Place]:
    """The places, each with `draws` turned additions, which serve as negative controls."""
    made = []
    for number, place in enumerate(found):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        made.append(replace(place, turns=tuple(turned(place, generator) for _ in range(draws))))
    return made
