"""The top of a row without sorting it all is what sorting it all would give, ties by lowest id included."""

from __future__ import annotations

import pytest
import torch

from finetrace.engine.divergences import top


@pytest.mark.parametrize("levels", [2, 5, 40, 10**6])
@pytest.mark.parametrize(
    ("k", "vocab"), [(1, 50), (3, 50), (20, 50), (50, 50), (1, 1024), (3, 2000), (5, 2816)]
)
def test_equals_a_stable_sort(levels: int, k: int, vocab: int):
    generator = torch.Generator().manual_seed(levels + k)
    values = torch.randint(0, levels, (64, vocab), generator=generator).float()
    values[3, 7] = torch.nan
    values[4, ::2] = torch.nan
    values[5, :] = -torch.inf
    order = values.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    found, ids = top(values, k)
    assert torch.equal(ids, order)
    torch.testing.assert_close(found, values.gather(-1, order), rtol=0, atol=0, equal_nan=True)


def test_no_change_at_all_gives_the_lowest_ids():
    assert top(torch.zeros(2, 9), 4)[1].tolist() == [[0, 1, 2, 3]] * 2
