"""The fast top K against the engine's, and against a sort, with ties and without enough rises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.engine.divergences import top
from finetrace.methods.diff_mining.extremes import by_size, cell_width, rises


def sorted_rises(values: torch.Tensor, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """By Python's stable sort."""
    ids, found = [], []
    for row in values.tolist():
        order = [i for i in sorted(range(len(row)), key=lambda i: -row[i]) if row[i] > 0][:k]
        ids.append(order + [-1] * (k - len(order)))
        found.append([row[i] for i in order] + [0.0] * (k - len(order)))
    return ids, found


@pytest.mark.parametrize(("vocab", "k"), [(33, 5), (320, 5), (1827, 20), (3392, 20), (16384, 3), (40000, 20)])
def test_the_engines_top_where_all_rise(vocab: int, k: int):
    values = torch.rand(30, vocab, generator=torch.Generator().manual_seed(vocab)) + 0.01
    found = by_size(rises(values, k))
    wanted_values, wanted_ids = top(values, k)
    assert torch.equal(found.ids, wanted_ids)
    assert torch.equal(found.values, wanted_values)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.sampled_from([16, 64, 96, 320, 800, 999]),
    st.sampled_from([0.5, 2.0, 50.0]),
)
def test_ties_go_to_the_lowest_column_and_only_rises_count(seed: int, k: int, vocab: int, grain: float):
    """Values on a coarse grid: many ties, many zeros, many falls."""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(7, vocab, generator=generator) * grain).round() / grain
    values[0] = 0
    values[1, : vocab // 2] = -1
    found, (ids, wanted) = rises(values, k), sorted_rises(values, k)
    assert [sorted(row) for row in found.ids.tolist()] == [sorted(row) for row in ids]
    torch.testing.assert_close(by_size(found).values, torch.tensor(wanted), rtol=0, atol=0)
    held = values.gather(1, found.ids.clamp(min=0)).where(found.ids >= 0, 0.0)
    torch.testing.assert_close(found.values, held, rtol=0, atol=0)


def test_both_ways_are_taken():
    """Otherwise the test above proves only one of them."""
    assert cell_width(320) == 32
    assert 320 >= 2 * 5 * 32
    assert 999 % 32 != 0
    assert cell_width(2**15) == 256


def test_one_row_of_one_token():
    found = rises(torch.tensor([[2.0]]), 3)
    assert found.ids.tolist() == [[0, -1, -1]]
    assert found.values.tolist() == [[2.0, 0.0, 0.0]]
