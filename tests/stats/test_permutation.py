"""Swaps of matched pairs: level under the null, power, and why whole columns are swapped."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from finetrace.core.errors import BadInput
from finetrace.stats import swap_pairs


def test_it_is_the_full_enumeration_on_few_pairs():
    generator = np.random.default_rng(0)
    treated, control = generator.chisquare(1, 7), generator.chisquare(1, 7)
    matrix = np.array([0, 0, 0, 1, 1, 1, 1])

    def theta(a, b):
        parts = [0.5 * np.log(a[matrix == m].sum() / b[matrix == m].sum()) for m in (0, 1)]
        return abs(3 * parts[0] + 4 * parts[1])

    seen, hits = theta(treated, control), 0
    for flips in itertools.product([False, True], repeat=7):
        swap = np.array(flips)
        hits += theta(np.where(swap, control, treated), np.where(swap, treated, control)) >= seen - 1e-12
    p = swap_pairs(treated, control, matrix, draws=20_000)
    assert p == pytest.approx(hits / 128, abs=0.015)


def test_level_and_power():
    generator, level, power = np.random.default_rng(1), 0, 0
    for run in range(300):
        treated, control = generator.chisquare(1, (2, 120))
        matrix = np.repeat(np.arange(4), 30)
        level += (swap_pairs(treated, control, matrix, draws=199, seed=run) or 1) <= 0.05
        power += (swap_pairs(4 * treated, control, matrix, draws=199, seed=run) or 1) <= 0.05
    assert level / 300 <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 300)
    assert power / 300 > 0.9


def test_columns_are_the_blocks_of_a_low_rank_update():
    """A group of whole columns, noise of low rank: single entries are far too sure, columns are not."""
    entries = columns = 0
    runs = 100
    for run in range(runs):
        generator = np.random.default_rng(run)
        square = np.square(generator.normal(size=(40, 2)) @ generator.normal(size=(2, 32)))
        picked = generator.permutation(32)
        row, pair = (part.ravel() for part in np.meshgrid(np.arange(40), np.arange(16), indexing="ij"))
        treated, control = square[row, picked[pair]], square[row, picked[16 + pair]]
        zero = np.zeros(len(row), int)
        entries += (swap_pairs(treated, control, zero, draws=199, seed=run) or 1) <= 0.05
        columns += (swap_pairs(treated, control, zero, blocks=pair, draws=199, seed=run) or 1) <= 0.05
    assert entries / runs > 0.3
    assert columns / runs <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / runs)


def test_no_pairs_or_no_drift_is_no_data():
    nothing = np.zeros(0)
    assert swap_pairs(nothing, nothing, np.zeros(0, int)) is None
    assert swap_pairs(np.zeros(3), np.zeros(3), np.zeros(3, int)) is None
    with pytest.raises(BadInput, match="as many treated"):
        swap_pairs(np.ones(3), np.ones(2), np.zeros(3, int))
    with pytest.raises(BadInput, match="at least one draw"):
        swap_pairs(np.ones(3), np.ones(3), np.zeros(3, int), draws=0)
