"""Windows of text: their scores by brute force, and how many the chance estimate lets through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.diff_mining_world import Text, mined, noise, subject

from finetrace.methods.diff_mining.spans import BINS, SHORTEST, bin_of, chance, edges, windows


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=5),
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(0, 99),
)
def test_windows_by_brute_force(lengths: list[int], span: int, stride: int, seed: int):
    random = np.random.default_rng(seed)
    ratio = np.full((len(lengths), max(lengths) + 1), np.nan)
    for i, length in enumerate(lengths):
        ratio[i, :length] = random.normal(size=length)
        if length > 3 and seed % 2:
            ratio[i, random.integers(length)] = np.nan
    scores, sizes = windows(ratio, np.array(lengths), span, stride)
    for i, length in enumerate(lengths):
        size = min(span, length)
        assert sizes[i] == size
        wanted = [
            ratio[i, start : start + size].sum()
            for start in range(0, length - size + 1, stride)
            if size >= min(SHORTEST, span)
        ]
        found = scores[i, : len(wanted)]
        np.testing.assert_allclose(found, wanted, atol=1e-9)
        assert np.isnan(scores[i, len(wanted) :]).all()


def test_bins_hold_what_their_edges_say():
    scores = np.r_[
        np.random.default_rng(0).normal(size=500) * 10.0 ** np.random.default_rng(1).integers(-8, 5, 500), 0
    ]
    bins, bounds = bin_of(scores), edges()
    assert len(bounds) == BINS + 1
    assert (np.diff(bounds) > 0).all()
    assert (bounds[bins] <= scores).all()
    assert (scores <= bounds[bins + 1]).all()
    assert (np.diff(bin_of(np.sort(scores))) >= 0).all()


def histograms(scores: np.ndarray) -> list[np.ndarray]:
    """scores [text, window] -> all windows, best, worst."""
    parts = (scores.ravel(), scores.max(1), scores.min(1))
    return [np.bincount(bin_of(part), minlength=BINS) for part in parts]


@pytest.mark.parametrize("centre", [0.0, 2.0, -1.0])
def test_scores_that_mean_nothing_are_seldom_called(centre: float):
    """Symmetric about any median, windows of a text alike: no text is called at q <= 0.2 in nearly all slices."""
    random, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        scores = centre + random.standard_t(3, (80, 1)) + random.normal(size=(80, 9))
        wrong += chance(float(scores.max()), *histograms(scores)) <= 0.2
    assert wrong <= 30, wrong


def test_texts_that_were_learnt_are_called():
    random = np.random.default_rng(4)
    scores = random.normal(size=(80, 9))
    scores[:20, 3] += 30
    found = sorted(chance(float(s), *histograms(scores)) for s in scores.max(1))
    assert found[0] == pytest.approx(1 / 20, rel=0.3)
    assert sum(q <= 0.1 for q in found) == 20


def test_a_learnt_passage_is_shown_where_it_is():
    """The tuned model finds positions 8 to 15 of one text more likely, by 2 nats a token."""
    texts = [t for t in noise(60, 40, seed=5, slices=1) if len(t.difference) >= 20]
    learnt = texts[3]
    d = learnt.difference.clone() * 0.1
    where = torch.arange(8, 16)
    d[where, learnt.ids[where + 1]] += 8.0
    texts = [Text(t.row, t.key, t.slice, t.ids, 0.1 * t.difference, t.base) for t in texts]
    texts[3] = Text(learnt.row, learnt.key, 0, learnt.ids, d, learnt.base)
    result = mined(texts, subject(60, ("a",)), span=8, stride=4, spans=2)
    best = result.spans[0]
    assert best.row == learnt.row
    assert best.stop - best.start == 8
    values = [v for v in best.values[best.start : best.stop] if v is not None]
    assert sum(values) == pytest.approx(best.score, rel=1e-5)
    # The prediction made at 8 is of the token at 9.
    assert best.tokens[best.start : best.stop] == tuple(f" t{i}" for i in learnt.ids[9:17].tolist())
    log_b = learnt.base.double()
    log_t = (log_b + d.double()).log_softmax(-1)
    ratio = (log_t - log_b)[where, learnt.ids[where + 1]]
    assert best.score == pytest.approx(float(ratio.sum()), rel=1e-4)
    assert result.span_texts == {"a": len(texts)}
    assert [s.score for s in result.spans] == sorted((s.score for s in result.spans), reverse=True)
