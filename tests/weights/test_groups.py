"""Groups by score: how many, which of equal ones, and what two have in common."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from finetrace.core.errors import BadInput
from finetrace.weights.groups import Group, chance_jaccard, difference, jaccard, joined, top

fractions = st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9])
# Few values, so that many are equal; none is 0.
scores = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0.5, 1.0, 2.0, 3.0]))
)


def by_hand(values: np.ndarray, fraction: float) -> list[int]:
    """The highest, of equal ones those of the lowest ids, by sorting all."""
    k = max(1, int(fraction * len(values) + 0.5))
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    return sorted(i for i in best if values[i] > 0)


@given(scores, fractions)
@settings(max_examples=60, deadline=None)
def test_the_highest_are_chosen_and_of_equal_ones_the_first(score: np.ndarray, fraction: float):
    made = {"m": torch.from_numpy(score)}
    rows, columns = score.shape
    assert top(made, fraction, name="g").of("m").tolist() == by_hand(score.ravel(), fraction)
    per_row = [i * columns + j for i in range(rows) for j in by_hand(score[i], fraction)]
    assert top(made, fraction, name="g", per="row").of("m").tolist() == per_row
    sums = score.astype(np.float64).sum(1)
    assert top(made, fraction, name="g", unit="rows").of("m").tolist() == by_hand(sums, fraction)


@given(scores, fractions, fractions, st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_the_difference_is_that_of_the_two_tops(score: np.ndarray, p: float, q: float, seed: int):
    other = np.random.default_rng(seed).permutation(score.ravel()).reshape(score.shape)
    safety, utility = {"m": torch.from_numpy(score)}, {"m": torch.from_numpy(other)}
    wanted = set(by_hand(score.ravel(), q)) - set(by_hand(other.ravel(), p))
    found = difference(safety, utility, p, q, name="g")
    assert found.of("m").tolist() == sorted(wanted)
    assert jaccard(found, top(utility, p, name="u")) == 0 or not len(found)


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)))
def test_jaccard_is_that_of_sets(a: set[int], b: set[int]):
    first, second = (Group("g", "entries", {"m": torch.tensor(sorted(x), dtype=torch.int64)}) for x in (a, b))
    wanted = len(a & b) / len(a | b) if a | b else None
    assert jaccard(first, second) == jaccard(second, first) == wanted


def test_two_random_groups_overlap_as_chance_says():
    torch.manual_seed(0)
    one, two = ({"m": torch.rand(400, 500)} for _ in range(2))
    found = jaccard(top(one, 0.1, name="a"), top(two, 0.1, name="b"))
    assert found == pytest.approx(chance_jaccard(0.1), rel=0.03)


def test_what_did_nothing_is_never_at_the_top():
    score = torch.zeros(4, 4)
    score[3, 3] = 1.0
    assert top({"m": score, "idle": torch.zeros(2, 2)}, 0.5, name="g").counts() == {"m": 1, "idle": 0}


def test_rows_columns_masks_and_numbers_of_weights():
    entries = Group("g", "entries", {"m": torch.tensor([1, 7])})
    rows, columns = entries.rows_columns("m", (3, 5))
    assert columns is not None
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 2])
    whole = Group("g", "rows", {"m": torch.tensor([0, 2])})
    assert whole.rows_columns("m", (3, 5))[1] is None
    assert (entries.weights({"m": (3, 5)}), whole.weights({"m": (3, 5)})) == ({"m": 2}, {"m": 10})
    assert entries.mask("m", (3, 5)).nonzero().tolist() == [[0, 1], [1, 2]]
    assert whole.mask("m", (3, 5)).sum(1).tolist() == [5, 0, 5]
    assert len(entries.of("other")) == 0
    assert len(whole) == 2


def test_parts_of_a_group_become_one():
    a, b = (Group("g", "entries", {m: torch.tensor([1])}) for m in "ab")
    assert joined([a, b]).counts() == {"a": 1, "b": 1}
    for parts in ([], [a, a], [a, Group("h", "entries", {})], [a, Group("g", "rows", {})]):
        with pytest.raises(BadInput):
            joined(parts)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_fraction_is_between_0_and_1(fraction: float):
    score = {"m": torch.rand(2, 3)}
    for call in (
        lambda: top(score, fraction, name="g"),
        lambda: difference(score, score, fraction, 0.1, name="g"),
        lambda: difference(score, score, 0.1, fraction, name="g"),
        lambda: chance_jaccard(fraction),
    ):
        with pytest.raises(BadInput, match="between 0 and 1"):
            call()


def test_what_cannot_be_ranked_or_compared_is_told():
    score = {"m": torch.rand(2, 3)}
    with pytest.raises(BadInput, match="per matrix"):
        top(score, 0.5, name="g", per="row", unit="rows")
    with pytest.raises(BadInput, match="unit 'columns'"):
        top(score, 0.5, name="g", unit="columns")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="not finite"):
        top({"m": torch.tensor([[1.0, torch.nan]])}, 0.5, name="g")
    with pytest.raises(BadInput, match="scores of n"):
        difference(score, score | {"n": torch.rand(2, 2)}, 0.1, 0.1, name="g")
    with pytest.raises(BadInput, match="overlap means nothing"):
        jaccard(Group("a", "entries", {}), Group("b", "rows", {}))
