"""Sums by text, and what is too small a change to train on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.feed import Moments, of_texts
from finetrace.dictionaries.findings import IDENTICAL
from finetrace.dictionaries.latents import Firings, latent_table
from finetrace.dictionaries.reading import Tokens
from finetrace.dictionaries.scaling import Scaling
from finetrace.dictionaries.study import Study, _reason, latents_of
from finetrace.dictionaries.sums import Ratio, TextSums


def test_ratios_are_of_a_slices_own_texts_and_below_0_only_where_they_can_be():
    def each(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        return torch.cat([base, tuned, torch.ones(len(base), 1)], 1)

    base, text = torch.tensor([[0.0], [6.0], [1.0], [9.0]]), torch.tensor([0, 1, 2, 2])
    sums = TextSums(each, 3, 1)
    sums.see(
        Tokens(
            base, torch.full((4, 1), 2.0), text, text, np.arange(4, dtype=np.uint64), np.array([0, 0, 1, 1]), np.arange(4)
        )
    )  # fmt: skip
    first, second = (sums.estimate(Ratio(0, 1), "share", 0, where) for where in (0, 1))
    assert (first.value, first.n, first.texts) == (1.5, 2, 2)
    assert (second.value, second.n, second.texts) == (2.5, 2, 1), "a text without tokens is in nothing"
    assert sums.estimate(Ratio(0, 1), "share", 0).value == 2.0
    assert sums.estimate(Ratio(0, 1), "share", 0, 2).value is None
    free, bound = (sums.estimate(Ratio(0, 1, positive), "share", 0, 0) for positive in (False, True))
    assert free.low is not None
    assert bound.low is not None
    assert free.low < 0 <= bound.low


@pytest.mark.parametrize(("change", "same"), [(0.0, True), (1e-7, True), (1e-5, False)])
def test_a_change_that_is_rounding_is_none(change: float, same: bool):
    """Squared norms: a millionth of the base's norm is what float32 rounds away."""
    one = Moments(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([1e6, 1e6, change]).double(), 50, 5)
    feed: Any = SimpleNamespace(moments={"training": one}, lost=0)
    assert (_reason(feed, "difference", 2) == IDENTICAL) is same


def test_scales_are_of_held_out_texts_and_frequencies_of_all():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(1, 6, 4, generator=generator), dim=2)
    one = Dictionary(
        encoder=decoder.mT.contiguous(), encoder_bias=torch.zeros(6), decoder=decoder, decoder_bias=torch.zeros(1, 4),
        mean=torch.zeros(1, 4), scale=torch.ones(1), owner=torch.zeros(6, dtype=torch.int8), threshold=0.1,
        kind="batch_topk", code_norm="none",
    )  # fmt: skip
    base, change = torch.randn(2, 60, 4, generator=generator)
    where = torch.arange(60)
    every = Tokens(
        base, base + change, where, where, np.arange(60, dtype=np.uint64), np.zeros(60, np.int64), np.arange(60)
    )  # fmt: skip
    held = of_texts(every, np.arange(60) % 3 == 0)
    feed: Any = SimpleNamespace(readings=lambda: [(None, every)], only=lambda tokens, part: held)
    desk: Any = SimpleNamespace(subject=SimpleNamespace(slices=("text",)), advance=lambda done, total: None)
    trained: Any = SimpleNamespace(dictionary=one)
    found = latents_of(Study(feed, "difference", "", trained), desk, 3)
    firings, scaling = Firings(one, "difference", 1), Scaling(one, "difference")
    firings.see(every)
    scaling.see(held)
    wanted = latent_table(one, firings, scaling.betas(), ("text",))
    assert found.table.data.keys() == wanted.data.keys()
    for name, column in wanted.data.items():
        np.testing.assert_array_equal(np.asarray(found.table.data[name]), np.asarray(column), name)
