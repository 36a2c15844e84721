"""Several adapters at once, and one against another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.weights.drawn import close, generators, whole

from finetrace.core.errors import BadInput
from finetrace.weights import difference, stacked
from finetrace.weights.delta import LowRank
from finetrace.weights.dense import Dense

few = settings(max_examples=25, deadline=None)


def low(generator: torch.Generator, r: int, size: float = 1.0) -> LowRank:
    up, down = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((9, r), (r, 11)))
    return LowRank("m", size * up, down)


@few
@given(generators(), st.lists(st.tuples(st.integers(1, 4), st.floats(-2, 2)), min_size=1, max_size=4))
def test_stacked_adapters_add_up(generator: torch.Generator, given_: list[tuple[int, float]]) -> None:
    parts = [low(generator, r) for r, _ in given_]
    found = stacked(parts, [factor for _, factor in given_])
    wanted = sum(
        (factor * whole(part) for part, (_, factor) in zip(parts, given_, strict=True)), torch.zeros(9, 11)
    )
    assert isinstance(found, LowRank)
    assert found.rank_bound == min(9, sum(r for r, _ in given_))
    close(whole(found), wanted, 1e-12, 1 + wanted.norm())
    close(found.row_squares(), wanted.square().sum(1), 1e-10, 1 + wanted.norm() ** 2)


@few
@given(generators(), st.integers(1, 4), st.integers(1, 4))
def test_one_adapter_against_another(generator: torch.Generator, r: int, other: int) -> None:
    after, before = low(generator, r), low(generator, other)
    found = difference(after, before)
    assert found.rank_bound == min(9, r + other)
    close(whole(found), whole(after) - whole(before), 1e-12, whole(after).norm() + whole(before).norm())
    assert difference(after, after).square() == 0.0


def test_a_little_later_checkpoint_of_one_adapter_keeps_its_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    before, step = low(generator, 3), low(generator, 3, 1e-9)
    after = LowRank("m", before.up + step.up, before.down + 1e-9 * step.down)
    exact = step.up @ before.down + (before.up + step.up) @ (1e-9 * step.down)
    found = difference(after, before)
    torch.testing.assert_close(found.row_squares(), exact.square().sum(1), rtol=1e-6, atol=0)


def test_what_has_no_factors_is_summed_by_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    adapter, weight = low(generator, 2), torch.randn(9, 11, generator=generator, dtype=torch.float64)
    merged = Dense("m", weight, weight + whole(adapter))
    assert difference(merged, adapter).frobenius() < 1e-12
    both = stacked([merged, adapter], [1.0, 2.0])
    torch.testing.assert_close(whole(both), 3 * whole(adapter), rtol=1e-12, atol=1e-12)
    assert both.rank_bound == 9
    assert stacked([merged]) is merged


def test_only_changes_of_one_matrix_and_one_baseline_are_put_together() -> None:
    generator = torch.Generator().manual_seed(0)
    one = low(generator, 2)
    for other, why in (
        (LowRank("n", one.up, one.down), "not of one matrix"),
        (LowRank("m", one.up[:5], one.down), "not of one matrix"),
        (LowRank("m", one.up, one.down, "dequantised"), r"different weights \(base and dequantised\)"),
    ):
        with pytest.raises(BadInput, match=why):
            stacked([one, other])
        with pytest.raises(BadInput, match=why):
            difference(one, other)
    with pytest.raises(BadInput, match="no change to stack"):
        stacked([])


def test_a_copy_stays_while_training_goes_on() -> None:
    factor = torch.ones(9, 2)
    live = LowRank("m", factor, torch.ones(2, 11))
    kept = live.copy()
    factor.add_(1)
    assert (float(live.tile(0, 1)[0, 0]), float(kept.tile(0, 1)[0, 0])) == (4.0, 2.0)
