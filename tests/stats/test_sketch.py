"""Sketches against the values themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from finetrace.core.errors import BadInput
from finetrace.stats.sketch import Sketch

VALUES = arrays.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.floats(0, float(np.float32(1e30)), width=32, allow_subnormal=False),
)


def sketched(values: np.ndarray, groups: np.ndarray | None = None, shape: tuple[int, ...] = (3,)) -> Sketch:
    made = Sketch(shape)
    made.see(values, np.zeros(len(values), np.int64) if groups is None else groups)
    return made


def same(one: Sketch, other: Sketch) -> bool:
    a, b = one.state(), other.state()
    return all(np.array_equal(a[name], b[name]) for name in a)


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_the_error_of_the_value_at_its_place(values: np.ndarray, share: float):
    exact = float(np.sort(values)[int(np.floor(share * (len(values) - 1)))])
    found = sketched(values).quantile(share)
    assert abs(found[0] - exact) <= Sketch((1,)).error * exact * (1 + 1e-12)
    assert np.isnan(found[1:]).all(), "no data is never 0"


@given(VALUES, st.data())
def test_any_cut_merged_in_any_order_is_the_whole(values: np.ndarray, data: st.DataObject):
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(values), max_size=len(values))))
    cuts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))))
    parts = [sketched(values[cuts == i], groups[cuts == i]) for i in data.draw(st.permutations(range(4)))]
    total = Sketch((3,))
    for part in parts:
        total.merge(part)
    whole = sketched(values, groups)
    assert same(total, whole)
    assert np.array_equal(total.count, np.bincount(groups, minlength=3))
    again = Sketch((3,))
    again.restore(whole.state())
    assert same(again, whole)
    assert np.array_equal(again.quantile(0.5), whole.quantile(0.5), equal_nan=True)


@given(VALUES)
def test_histograms_are_exact(values: np.ndarray):
    for splits in (0, 1, 6):
        edges, counts = sketched(values).histogram(splits)
        inner = np.concatenate([[0.0], edges[1:-1], [np.inf]]) if len(edges) > 2 else np.array([0.0, np.inf])
        assert np.array_equal(counts[0], np.histogram(values.astype(float), inner)[0])
        assert counts[0].sum() == len(values)
        assert not counts[1:].any()


def test_edges_of_a_histogram_are_round():
    edges, counts = sketched(np.array([0.0, 1.0, 1.5, 2.9, 3.0, 6.5])).histogram(1)
    assert edges.tolist() == [0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0]
    assert counts[0].tolist() == [1, 1, 1, 1, 1, 0, 1]


def test_groups_together_are_one_group_of_all():
    rng = np.random.default_rng(0)
    values, groups = rng.lognormal(0, 3, 500), rng.integers(0, 6, 500)
    grid = sketched(values, groups, (2, 3))
    assert same(grid.summed(0), sketched(values, groups % 3, (3,)))
    assert same(grid.summed(-1), sketched(values, groups // 3, (2,)))
    assert grid.summed(0).summed(0).count.tolist() == [500]


def test_groups_at_an_index_are_those_alone():
    rng = np.random.default_rng(0)
    values, groups = rng.lognormal(0, 3, 500), rng.integers(0, 6, 500)
    own = groups // 3 == 1
    part = sketched(values, groups, (2, 3)).at(1)
    assert same(part, sketched(values[own], groups[own] % 3, (3,)))
    assert part.at(2).count.tolist() == [int((groups == 5).sum())]


def test_a_sketch_of_nothing_has_no_figures_and_can_be_taken_apart():
    empty = Sketch((2, 3))
    assert empty.at(1).count.tolist() == empty.summed(0).count.tolist() == [0, 0, 0]
    assert np.isnan(empty.quantile(0.5)).all()
    assert not empty.above(np.zeros((2, 3))).any()
    edges, counts = empty.histogram(1)
    assert (edges.tolist(), counts.shape, counts.sum()) == ([0.0, 1.0], (2, 3, 1), 0)


def test_above_counts_what_is_larger():
    grid = sketched(np.array([0.0, 1.0, 2.0, 40.0, 5.0]), np.array([0, 0, 0, 0, 1]))
    assert grid.above(np.array([1.5, 6.0, 0.0])).tolist() == [2, 0, 0]
    assert grid.above(np.array(np.nan)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 1e39])
def test_what_has_no_bin_is_refused(value: float):
    with pytest.raises(BadInput, match="not negative"):
        sketched(np.array([1.0, value]))


def test_other_misuse_is_refused():
    with pytest.raises(BadInput, match="no such group"):
        sketched(np.ones(1), np.array([3]))
    with pytest.raises(BadInput, match="one group"):
        sketched(np.ones(2), np.array([0]))
    with pytest.raises(BadInput, match="merged"):
        Sketch((3,)).merge(Sketch((3,), bits=5))
    with pytest.raises(BadInput, match="bits"):
        Sketch((3,), bits=20)
    with pytest.raises(BadInput, match="grid"):
        Sketch(())
    with pytest.raises(BadInput, match="share"):
        Sketch((1,)).quantile(1.5)
    with pytest.raises(BadInput, match="splits"):
        Sketch((1,)).histogram(7)
