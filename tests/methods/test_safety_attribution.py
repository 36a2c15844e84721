"""Effects of an update on losses: against dense autograd in float64, module by module and sample by sample."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn

from finetrace.core.errors import DataError, ModelError
from finetrace.data.examples import Example, make_examples
from finetrace.methods.safety_attribution.path import Effects, effects, gauss_legendre, losses
from finetrace.methods.safety_attribution.places import Place, layer_of, places, with_turns
from finetrace.models.supervised import collate, sample_losses
from finetrace.weights.delta import Delta, LowRank
from finetrace.weights.dense import Dense
from finetrace.weights.dora import dora

Changes = Mapping[str, Tensor]


def samples(*, alike: bool = False) -> list[Example]:
    """Three chats of other lengths, or of one."""
    said = [("w1 w2 w3", "w4 w5 w6 w7"), ("w6", "w7 w8"), ("w6 w9 w3 w2", "w1")]
    if alike:
        said = [("w1 w2", "w4 w5"), ("w6 w3", "w7 w8")]
    rows = [
        {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}
        for user, answer in said
    ]
    return make_examples(rows, tiny_tokenizer())


def exact(family: str = "gpt2", **sizes: Any) -> Any:
    """A model that computes in float64 throughout: gpt2's norms do, others' go through float32."""
    return tiny_model(family, d=16, **sizes).double().requires_grad_(False)


def factors(model: Any, *, size: float = 0.1, only: str = "") -> dict[str, Delta]:
    """A LowRank change of every matrix of the blocks, or of those whose name holds `only`."""
    from transformers.pytorch_utils import Conv1D

    generator = torch.Generator().manual_seed(0)
    found: dict[str, Delta] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name != "lm_head" and only in name:
            weight: Any = module.weight
            rows, columns = weight.shape if isinstance(module, nn.Linear) else weight.T.shape
            up = size * torch.randn(rows, 2, generator=generator, dtype=torch.float64)
            down = 0.3 * torch.randn(2, columns, generator=generator, dtype=torch.float64)
            found[name] = LowRank(name, up, down)
    return found


def dense(model: Any, deltas: Mapping[str, Delta]) -> dict[str, Tensor]:
    """The changes as tensors in the parameters' own layout."""
    modules, found = dict(model.named_modules()), {}
    for name, delta in deltas.items():
        whole = delta.tile(0, delta.shape[0])
        found[f"{name}.weight"] = whole if isinstance(modules[name], nn.Linear) else whole.T
    return found


def moved(model: Any, changes: Changes, a: float) -> Any:
    other = copy.deepcopy(model)
    own = dict(other.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for tensor, change in {own[key]: change for key, change in changes.items()}.items():
            tensor.add_(a * change)
    return other


def slope(model: Any, changes: Changes, sample: Example, a: float) -> dict[str, float]:
    """<dL/dW, change> of each changed parameter at W + a change, from gradients of the weights."""
    other = moved(model, changes, a).requires_grad_(True)
    sample_losses(other, collate([sample], 0)).sum().backward()
    own = dict(other.named_parameters(remove_duplicate=False))
    return {key: float((own[key].grad * change).sum()) for key, change in changes.items()}


def by_hand(model: Any, changes: Changes, made: Sequence[Example], nodes: int) -> np.ndarray:
    """[sample, parameter]: the integral over the path, one sample and node at a time."""
    at, weight = gauss_legendre(nodes)
    slopes = [
        [list(slope(model, changes, sample, a).values()) for a in at.tolist()] for sample in made
    ]  # [sample, node, parameter]
    return np.einsum("snp,n->sp", np.array(slopes), weight)


def taken(model: Any, found: Sequence[Place], made: Sequence[Example], **options: Any) -> Effects:
    """The effects, with the end of the path as the tuned losses."""
    given = {"pad": 0, "nodes": 8, "batch": 2, "panels": 1, **options}
    if "tuned" not in given:
        with torch.no_grad():
            given["tuned"] = np.concatenate(
                [_end(model, found, [sample]) for sample in made] or [np.zeros(0)]
            )
    return effects(model, found, made, **given)


def _end(model: Any, found: Sequence[Place], made: Sequence[Example]) -> np.ndarray:
    """Losses with every addition, hooked by hand."""
    handles = [
        place.module.register_forward_hook(
            lambda module, args, out, place=place: out + place.addition(args[0])
        )
        for place in found
    ]
    try:
        return losses(model, made, pad=0, batch=1)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("family", "near"), [("gpt2", 1e-12), ("llama", 1e-6), ("gemma2", 1e-5)])
def test_effects_of_factors_are_those_of_dense_gradients(family: str, near: float):
    model, made = exact(family), samples()
    deltas = factors(model)
    changes = dense(model, deltas)
    found = taken(model, places(model, deltas, {}), made, nodes=3)
    first = np.array([list(slope(model, changes, s, 0.0).values()) for s in made])
    assert found.first == pytest.approx(first, abs=near)
    assert found.integrated == pytest.approx(by_hand(model, changes, made, 3), abs=near)


def everything(model: Any, deltas: Mapping[str, Delta]) -> tuple[dict[str, tuple[Tensor, Tensor]], Changes]:
    """A change of all that the factors leave alone: embeddings, norms, biases and the tied head."""
    generator = torch.Generator().manual_seed(1)
    changes = dense(model, deltas)
    drawn: dict[int, Tensor] = {}
    others = {}
    for key, tensor in model.named_parameters(remove_duplicate=False):
        if key not in changes:
            step = drawn.setdefault(
                id(tensor), 0.05 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            )
            others[key] = tensor.detach(), tensor.detach() + step
    return others, changes | {key: after - before for key, (before, after) in others.items()}


@pytest.mark.parametrize(("family", "near"), [("gpt2", 1e-12), ("llama", 1e-6), ("gemma3", 1e-5)])
def test_effects_of_everything_else_are_those_of_its_gradients(family: str, near: float):
    """Of a tied tensor the gradient does not say which use it comes from: the two places are held to it together."""
    model, made = exact(family), samples()
    deltas = factors(model)
    others, changes = everything(model, deltas)
    found = places(model, deltas, others)
    effect = taken(model, found, made, nodes=2).integrated
    wanted = by_hand(model, changes, made, 2)
    tied = [
        name for name in changes if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))
    ]
    names = [place.name for place in found]
    for name in {key.rpartition(".")[0] for key in changes if key not in tied}:
        ours = effect[:, names.index(name)]
        theirs = sum(wanted[:, i] for i, key in enumerate(changes) if key.rpartition(".")[0] == name)
        assert ours == pytest.approx(theirs, abs=near), name
    ours = sum(effect[:, names.index(key.rpartition(".")[0])] for key in tied)
    assert ours == pytest.approx(wanted[:, list(changes).index(tied[0])], abs=near)


def kinds(kind: str, model: Any) -> dict[str, Delta]:
    low = factors(model, size=0.03)
    if kind == "lora":
        return low
    found: dict[str, Delta] = {}
    modules = dict(model.named_modules())
    for name, delta in low.items():
        weight = modules[name].weight.detach()
        weight = weight if isinstance(modules[name], nn.Linear) else weight.T
        if kind == "dora" and isinstance(delta, LowRank):
            found[name] = dora(name, weight, delta, 1.02 * weight.norm(dim=1))
        else:
            found[name] = Dense(name, weight, weight + delta.tile(0, delta.shape[0]))
    return found


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_effects_add_up_to_the_change_of_loss(kind: str):
    model, made = exact(), samples()
    deltas = kinds(kind, model)
    others, changes = everything(model, deltas) if kind == "full" else ({}, dense(model, deltas))
    found = taken(model, places(model, deltas, others), made)
    tuned = losses(moved(model, changes, 1.0), made, pad=0, batch=2)
    assert found.end == pytest.approx(tuned, abs=1e-10)
    size = np.abs(found.integrated).sum(1)
    assert (np.abs(found.integrated.sum(1) - (tuned - found.base)) <= 1e-4 * size).all()
    assert (np.abs(found.first.sum(1) - (tuned - found.base)) > 1e-3 * size).any(), "the path is not straight"


def test_an_update_of_one_layer_has_no_effect_elsewhere():
    model = exact(layers=3)
    deltas = factors(model, only="h.1.")
    nothing = {name: delta.scaled(0.0) for name, delta in factors(model).items() if name not in deltas}
    found = places(model, {**deltas, **nothing}, {})
    effect = taken(model, found, samples()).integrated
    inside = np.array([place.layer == 1 for place in found])
    assert np.abs(effect[:, inside]).sum() > 0.01
    assert not effect[:, ~inside].any()


def test_the_order_of_samples_and_the_batch_do_not_matter():
    model, made = exact(), samples()
    found = places(model, factors(model), {})
    forth = taken(model, found, made)
    back = taken(model, found, made[::-1], batch=1)
    assert back.integrated[::-1] == pytest.approx(forth.integrated, abs=1e-12)
    assert back.base[::-1] == pytest.approx(forth.base, abs=1e-12)


def test_no_update_has_no_effect():
    found = taken(exact(), [], samples())
    assert found.integrated.shape == (3, 0)
    assert (found.end == found.base).all()


def test_the_model_is_left_as_it_was_even_after_an_error():
    model, made = exact(), samples()
    model.requires_grad_(True)
    before = {key: tensor.detach().clone() for key, tensor in model.named_parameters()}
    found = places(model, factors(model), {})

    def broken(inputs: Tensor) -> Tensor:
        raise ValueError("in the middle")

    taken(model, found, made)
    with pytest.raises(ValueError, match="in the middle"):
        taken(model, [*found[:3], Place(found[3].name, found[3].module, broken)], made)
    for key, tensor in model.named_parameters():
        assert torch.equal(tensor, before[key])
        assert tensor.requires_grad
        assert tensor.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_controls_are_near_zero_where_the_update_is_not():
    """An update down the gradient lowers the loss; turned in random directions it does nothing on average."""
    model, made = exact(), samples(alike=True)
    model.requires_grad_(True)
    sample_losses(model, collate(made, 0)).sum().backward()
    deltas: dict[str, Delta] = {}
    for name in factors(model):
        tensor = dict(model.named_parameters())[f"{name}.weight"]
        weight, gradient = tensor.detach().T, (tensor.grad if tensor.grad is not None else tensor).T
        deltas[name] = Dense(name, weight, weight - 1e-3 * gradient)
    found = places(model, deltas, {})
    effect = taken(model, with_turns(found, 64, 0), made)
    total, drawn = effect.first.sum(1).mean(), effect.controls.mean(1)
    assert total < 0
    assert abs(drawn.mean()) < 0.02 * abs(total)
    assert np.abs(drawn).max() < 0.2 * abs(total)
    assert drawn.std() > 0


def test_a_turned_update_is_as_large_as_the_update():
    model = exact()
    (place, *_) = places(model, factors(model), {})
    (turned,) = with_turns([place], 1, 3)[0].turns
    eye = torch.eye(16, dtype=torch.float64)
    ours, theirs = (torch.linalg.svdvals(addition(eye)) for addition in (place.addition, turned))
    assert torch.allclose(ours, theirs)
    assert not torch.allclose(place.addition(eye), turned(eye))
    assert torch.equal(turned(eye), turned(eye)), "the same turn for every batch"


def test_more_nodes_integrate_a_bend_better():
    model, made = exact(), samples()
    deltas = factors(model, size=0.3)
    found = places(model, deltas, {})
    tuned = losses(moved(model, dense(model, deltas), 1.0), made, pad=0, batch=2)
    missed = []
    for nodes in (2, 16):
        effect = taken(model, found, made, nodes=nodes)
        missed.append(np.abs(effect.integrated.sum(1) - (tuned - effect.base)).max())
    assert missed[1] < missed[0] / 10


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"transformer.h.9.attn.c_attn.weight": (torch.zeros(2), torch.ones(2))}, "does not have"),
        ({"transformer.wte.weight": (torch.zeros(4, 16), torch.ones(4, 16))}, "another shape"),
        ({"transformer.h.0.mlp.experts[3].weight": (torch.zeros(2), torch.ones(2))}, "experts"),
    ],
)
def test_what_cannot_be_divided_is_said(change: dict[str, tuple[Tensor, Tensor]], says: str):
    with pytest.raises(ModelError, match=says):
        places(exact(), {}, change)


def test_samples_without_targets_are_an_error():
    model = exact()
    bare = Example(np.array([1, 2, 3], dtype=np.int32), np.zeros(3, dtype=bool))
    with pytest.raises(DataError, match="no target"):
        taken(model, places(model, factors(model), {}), [*samples(), bare])
    with pytest.raises(DataError, match="no samples"):
        taken(model, places(model, factors(model), {}), [])


def test_layers_are_read_off_names():
    assert layer_of("model.layers.3.self_attn.q_proj") == 3
    assert layer_of("transformer.h.11.mlp.c_fc") == 11
    assert layer_of("lm_head") is None
    assert layer_of("model.embed_tokens") is None
