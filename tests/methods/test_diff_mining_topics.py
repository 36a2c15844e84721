"""Topics: planted ones are found, in noise there are none, and equal counts give equal topics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from tests.methods.diff_mining_world import Text, mined, noise, subject

from finetrace.methods.diff_mining.result import Result
from finetrace.methods.diff_mining.topics import factorise, trials

VOCAB = 160
FRUIT, METAL = list(range(10, 18)), list(range(40, 48))


def planted(*groups: list[int], seed: int = 0, n: int = 60, share: float = 0.4) -> list[Text]:
    """Noise, in which at some positions all tokens of one group rise by 3."""
    generator = torch.Generator().manual_seed(seed + 99)
    texts = []
    for t in noise(VOCAB, n, seed=seed):
        d = t.difference.clone()
        which = torch.rand(len(d), generator=generator)
        for i, group in enumerate(groups):
            there = (which >= share * i) & (which < share * (i + 1))
            d[there.nonzero(), torch.tensor(group)] += 3.0
        texts.append(Text(t.row, t.key, t.slice, t.ids, d, t.base))
    return texts


def columns(result: Result, topic: int) -> set[int]:
    """The columns of a topic's heaviest tokens that hold 0.9 of it."""
    found = result.topics.found[topic]
    known = np.asarray(result.vocabulary.data["token_id"]).tolist()
    held = np.cumsum(found.weights) - found.weights < 0.9 * sum(found.weights)
    return {known.index(i) for i, inside in zip(found.token_ids, held, strict=True) if inside}


@pytest.mark.parametrize("orthogonal", [False, True])
def test_two_planted_topics_are_found(orthogonal: bool):
    result = mined(planted(FRUIT, METAL), subject(VOCAB), top_k=10, orthogonal=orthogonal)
    assert len(result.topics.found) == 2
    assert 16 <= result.topics.candidates <= 18
    assert {frozenset(columns(result, t)) for t in range(2)} == {frozenset(FRUIT), frozenset(METAL)}
    for topic in result.topics.found:
        assert topic.prevalence == pytest.approx(0.5, abs=0.15), "of the positions where either rises"
        assert topic.stability > 0.95
        assert 0 < topic.concentration < 0.6, "eight tokens of sixteen or so"
        assert sum(topic.slices.values()) == pytest.approx(1)
    assert sum(t.mass for t in result.topics.found) == pytest.approx(1)
    assert result.topics.cosine[0, 1] < 0.1
    np.testing.assert_allclose(np.diagonal(result.topics.cosine), 1)


def test_one_planted_topic_is_one():
    result = mined(planted(FRUIT), subject(VOCAB), top_k=10)
    assert len(result.topics.found) == 1
    assert columns(result, 0) == set(FRUIT)


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_topics(seed: int):
    """Also where some tokens move three times as much as others, so that they are in both lists everywhere."""
    texts = noise(VOCAB, 60, seed=seed)
    size = torch.where(torch.arange(VOCAB) % 7 == 0, 3.0, 1.0)
    loud = [Text(t.row, t.key, t.slice, t.ids, t.difference * size, t.base) for t in texts]
    for given in (texts, loud):
        topics = mined(given, subject(VOCAB), top_k=10).topics
        assert topics.found == ()
        assert topics.reason
        assert topics.candidates <= 1, "loud tokens are in both lists: none is enriched"


def test_tokens_that_rise_by_themselves_are_no_topics():
    """Ten tokens rise often, each at positions of its own: every one would make a stable topic."""
    random = np.random.default_rng(0)
    dense = random.random((2000, 10)) * (random.random((2000, 10)) < np.linspace(0.1, 0.5, 10))
    half = (np.arange(2000) % 2).astype(np.uint64)
    found = trials(csr_matrix(dense), half, vocab=200, seed=0)
    assert not any(trial.holds for trial in found.values())
    assert max(float(trial.stability.min()) for trial in found.values()) > 0.8


def test_equal_counts_give_equal_topics():
    """Whatever the batches, the chunks and the order of the texts: equal but for the last bits of the rises."""
    texts = planted(FRUIT, METAL, seed=3)
    one = mined(texts, subject(VOCAB), top_k=10)
    other = mined(texts[::-1], subject(VOCAB), top_k=10, batch=9, chunk=1000)
    assert len(one.topics.found) == len(other.topics.found) == 2
    for a, b in zip(one.topics.found, other.topics.found, strict=True):
        weights = [dict(zip(t.token_ids[:8], t.weights, strict=False)) for t in (a, b)]
        assert weights[0] == pytest.approx(weights[1], abs=1e-5)
        assert (a.mass, a.prevalence, a.stability) == pytest.approx(
            (b.mass, b.prevalence, b.stability), abs=1e-5
        )
    again = mined(texts, subject(VOCAB), top_k=10)
    assert again.topics.found == one.topics.found, "the same matrix: the same bits"


def test_the_number_asked_for_is_given():
    result = mined(planted(FRUIT, METAL), subject(VOCAB), top_k=10, topics=3)
    assert len(result.topics.found) == 3
    assert "asked for" in result.topics.reason


def test_the_factorisation_is_scikit_learns_and_orthogonal_topics_share_less():
    from sklearn.decomposition import NMF

    random = np.random.default_rng(1)
    h = random.random((3, 40)) * (random.random((3, 40)) < 0.5)
    x = csr_matrix((random.random((300, 3)) @ h) * (random.random((300, 40)) < 0.7))
    ours, options = (
        factorise(x, 3, seed=0),
        {"init": "nndsvda", "random_state": 0, "max_iter": 2000, "tol": 1e-6},
    )
    theirs: Any = NMF(n_components=3, **options)  # pyright: ignore
    error = np.linalg.norm(x.toarray() - theirs.fit_transform(x) @ theirs.components_)
    mine = np.linalg.norm(x.toarray() - ours.positions @ ours.tokens)
    assert mine == pytest.approx(error, rel=0.01)
    assert ours.explained == pytest.approx(1 - mine**2 / np.linalg.norm(x.toarray()) ** 2, rel=1e-9)

    def alike(tokens: np.ndarray) -> float:
        unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
        return float((unit @ unit.T)[np.triu_indices(3, 1)].max())

    apart = factorise(x, 3, seed=0, orthogonal=True)
    assert alike(apart.tokens) < 0.5 * alike(ours.tokens)
    assert 0 < apart.explained <= ours.explained + 1e-3
