"""The gradients written out by hand are autograd's, in every form of the loss; the selection is a sort's."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetrace.dictionaries.dictionary import CODE_NORMS, code_weights
from finetrace.dictionaries.losses import Objective, Parameters, loss_and_gradients
from finetrace.dictionaries.selection import select

D, LATENTS, ROWS = 6, 20, 15
DEAD = torch.tensor([1, 5, 7, 13])


def weights(models: int) -> tuple[Parameters, Tensor]:
    g = torch.Generator().manual_seed(models)
    wide = models * D
    shapes = ((wide, LATENTS), (LATENTS,), (LATENTS, wide), (wide,))
    made = [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]
    return Parameters(*made), torch.randn(ROWS, wide, generator=g, dtype=torch.float64)


def strongest(strength: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest of those above 0."""
    order = strength.flatten().argsort(descending=True)[:count]
    mask = torch.zeros(strength.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.view_as(strength) & (strength > 0)


def by_autograd(p: Parameters, z: Tensor, o: Objective) -> tuple[float, list[Tensor]]:
    encoder, encoder_bias, decoder, decoder_bias = leaves = [t.clone().requires_grad_() for t in p.tensors()]
    codes = (z @ encoder + encoder_bias).relu()
    by_model = decoder.view(LATENTS, o.models, D).transpose(0, 1)
    weight = code_weights(by_model, o.code_norm)
    loss, sides = torch.zeros((), dtype=torch.float64), [codes] * o.models
    if o.kind == "relu":
        loss = o.l1 * (codes * weight).sum() / ROWS
    else:
        kept = strongest((codes[None] * weight[:, None]).detach(), ROWS * o.k * len(weight))
        sides = [codes * mask for mask in kept.expand(o.models, -1, -1)]
    made = torch.stack([side @ own for side, own in zip(sides, by_model, strict=True)], 1)
    error = made + decoder_bias.view(o.models, D) - z.view(ROWS, o.models, D)
    loss = loss + error.square().sum() / ROWS
    if o.delta:
        base, tuned = o.spread
        loss = loss + o.delta * (tuned * error[:, 1] - base * error[:, 0]).square().sum() / ROWS
    if o.aux_alpha:
        some = codes[:, DEAD]
        kept = strongest((some * weight.sum(0)[DEAD]).detach(), ROWS * o.aux_k)
        left = (some * kept) @ decoder[DEAD] + error.detach().flatten(1)
        loss = loss + o.aux_alpha * left.square().sum() / ROWS
    loss.backward()
    return float(loss.detach()), [leaf.grad if leaf.grad is not None else leaf * 0 for leaf in leaves]


FORMS = [(1, "none", 0.0)] + [(2, norm, delta) for norm in CODE_NORMS for delta in (0.0, 2.0)]


@pytest.mark.parametrize(("models", "norm", "delta"), FORMS)
def test_gradients_are_autograds(models: int, norm, delta: float):
    p, z = weights(models)
    for kind, aux in itertools.product(("batch_topk", "relu"), (0.0, 0.3)):
        asked = Objective(models, kind, norm, 3, 0.3, delta, aux, 2, (0.7, 1.4))
        # Decoupled codes have no selection to be decoupled in where nothing is selected: an L1 term sees their sum.
        same = replace(asked, code_norm="crosscoder") if kind == "relu" and norm == "decoupled" else asked
        total, wanted = by_autograd(p, z, same)
        found = loss_and_gradients(p, p, z, asked, DEAD)
        assert found.loss.total == pytest.approx(total, abs=1e-8)
        for mine, theirs in zip(found.gradients.tensors(), wanted, strict=True):
            assert float((mine - theirs).abs().max()) < 1e-8
        codes = (z @ p.encoder + p.encoder_bias).relu()[None]
        weight = code_weights(p.by_model(models), same.code_norm)[:, None]
        on = codes > 0 if kind == "relu" else strongest(codes * weight, ROWS * 3 * len(weight))
        assert torch.equal(found.fired, on.any(1).any(0))
        assert found.active == pytest.approx(float(on.sum()) / ROWS / len(on))
        parts = found.loss
        assert sum(parts.reconstruction) + parts.l1 + parts.delta + parts.aux == pytest.approx(total)
        assert (parts.delta > 0, parts.aux > 0, parts.l1 > 0) == (delta > 0, aux > 0, kind == "relu")


def test_a_guess_changes_nothing_that_is_found():
    p, z = weights(2)
    for norm in CODE_NORMS:
        asked = Objective(2, "batch_topk", norm, 3)
        plain = loss_and_gradients(p, p, z, asked, DEAD)
        assert plain.cut is not None
        for share in (0.5, 0.95, 1.0, 1.5):
            guessed = loss_and_gradients(p, p, z, asked, DEAD, share * plain.cut)
            assert guessed.loss == plain.loss
            assert guessed.cut == plain.cut
            assert torch.equal(guessed.fired, plain.fired)


def test_bfloat16_products_are_near_the_exact_gradients():
    p, z = weights(2)
    asked = Objective(2, "relu", "crosscoder", 3, 0.3, 2.0)
    exact = loss_and_gradients(p, p, z, asked, DEAD)
    single = Parameters(*(t.float() for t in p.tensors()))
    cast = Parameters(*(t.bfloat16() for t in p.tensors()))
    found = loss_and_gradients(single, cast, z.float(), asked, DEAD)
    assert found.loss.total == pytest.approx(exact.loss.total, rel=0.01)
    for mine, true in zip(found.gradients.tensors(), exact.gradients.tensors(), strict=True):
        assert float((mine.double() - true).norm() / true.norm()) < 0.02


@given(
    st.lists(st.integers(-3, 6), min_size=12, max_size=12),
    st.integers(1, 30),
    st.floats(0, 8),
    st.sampled_from([None, [[1.0, 2.0, 0.0]], [[1.0, 0.5, 2.0], [0.0, 1.0, 1.0]]]),
)
def test_the_selection_is_that_of_a_stable_sort(values, count, guess, weight):
    """Integers, so that many are equal: of those the first ones, side by side."""
    pre = torch.tensor(values, dtype=torch.float32).view(4, 3)
    sides = None if weight is None else torch.tensor(weight)
    strength = pre[None] if sides is None else pre[None] * sides[:, None]
    flat = strength.flatten()
    order = [i for i in flat.argsort(descending=True, stable=True).tolist() if flat[i] > 0][:count]
    found = select(pre, sides, count, guess)
    got = [int(i) + 12 * side for side, kept in enumerate(found.kept) for i in kept]
    assert got == sorted(order)
    assert found.cut == (float(flat[order].min()) if order else None)
