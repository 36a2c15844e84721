"""What latents say, one by one and together: against a plain sum over all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.findings import CONSTANT_PART, TOGETHER
from finetrace.dictionaries.words import joined, most, moved_most, nulls_say, reaches, words

D, VOCAB, LATENTS = 6, 11, 40
HEADS = torch.randn(2, VOCAB, D, generator=torch.Generator().manual_seed(0))


def subject() -> Any:
    special, dead = np.arange(VOCAB) == 0, np.arange(VOCAB) == 5
    vocabulary = SimpleNamespace(
        special=special, dead=dead, ids=np.arange(VOCAB) + 50, texts=[f" t{i}" for i in range(VOCAB)]
    )

    def lens(vectors: Tensor, direction: bool = True) -> tuple[Tensor, Tensor]:
        return vectors @ HEADS[0].T, vectors @ HEADS[1].T

    return SimpleNamespace(vocabulary=vocabulary, lens=lens)


def made() -> tuple[Tensor, np.ndarray]:
    vectors = torch.randn(1 + LATENTS, D, generator=torch.Generator().manual_seed(1))
    vectors[8] = 0.0
    sizes = np.random.default_rng(0).random(1 + LATENTS)
    sizes[4], sizes[9] = np.nan, 0.0
    return vectors, sizes


def test_together_is_the_root_of_the_sum_of_all_pushes_and_shown_or_not_makes_no_difference():
    vectors, sizes = made()
    total = np.zeros(VOCAB)
    alive = [i for i in range(VOCAB) if i not in (0, 5)]
    for vector, size in zip(vectors.double(), sizes, strict=True):
        if not np.isfinite(size) or not vector.any():
            continue
        logits = (HEADS[0].double() @ (vector / vector.square().mean().sqrt())).numpy()
        total += (size * np.maximum(0, logits - logits[alive].mean())) ** 2
    shown = np.array([3, 30])
    found = words(subject(), vectors, sizes, shown, 4)
    np.testing.assert_allclose(found.reach, np.sqrt(total[alive]), rtol=1e-4)
    other = words(subject(), vectors, sizes, np.array([1]), 4)
    np.testing.assert_array_equal(found.reach, other.reach)
    assert found.token_ids.tolist() == [50 + i for i in alive]
    data = found.table.data
    latents = np.asarray(data["latent"])
    assert set(latents.tolist()) == {CONSTANT_PART, 3, 30, TOGETHER}
    best = np.asarray(data["token_id"])[latents == TOGETHER].tolist()
    assert best == [50 + i for i in sorted(alive, key=lambda i: -total[i])[:4]]
    assert [f" t{i - 50}" for i in best] == [data["token"][i] for i in np.flatnonzero(latents == TOGETHER)]
    assert str(joined(found.table, TOGETHER)).split(" · ")[0] == f"t{best[0] - 50}"


def test_nulls_say_what_they_say_as_loudly():
    vectors, sizes = made()
    found = words(subject(), vectors, sizes, np.array([3, 30]), 4)

    def result(peaks: np.ndarray) -> Any:
        return SimpleNamespace(words=found.table, token_ids=found.token_ids, peaks=peaks, reach=found.reach)

    own = result(found.peaks)
    assert nulls_say(own, [], 3) is None
    assert nulls_say(own, [result(np.zeros(0))], 3) is None
    assert nulls_say(own, [result(np.full(9, -9.0)), result(found.peaks + 1)], 3) == 1.0
    assert nulls_say(own, [result(np.full(9, -9.0))], 30) == 0.0
    assert moved_most(own, 3) == tuple(np.asarray(found.table.data["token_id"])[-4:-1].tolist())


def test_what_adds_nothing_says_nothing():
    found = words(subject(), torch.zeros(1, D), np.zeros(1), np.zeros(0, np.int64), 4)
    assert not found.reach.any()
    assert not len(found.table)
    empty: Any = SimpleNamespace(words=Columns({}), token_ids=found.token_ids, reach=found.reach)
    assert moved_most(empty, 5) == ()


def test_peaks_are_the_largest_of_all_that_are_shown_and_nulls_count_at_their_loudest():
    vectors, sizes = made()
    shown = np.arange(LATENTS)
    found = words(subject(), vectors, sizes, shown, 4)
    alive = [i for i in range(VOCAB) if i not in (0, 5)]
    unit = vectors / vectors.square().mean(1, keepdim=True).sqrt().clamp(min=1e-9)
    logits = (unit @ HEADS[0].T).numpy()[:, alive]
    exact = np.maximum(0.0, (logits - logits.mean(1, keepdims=True)).max(0))
    np.testing.assert_allclose(found.peaks, exact, rtol=1e-4)
    nulls: list[Any] = [
        SimpleNamespace(peaks=np.array(one), reach=np.array(one) * 2) for one in ([1.0, 4.0], [3.0, 2.0], [])
    ]
    for told, times in ((most(nulls), 1), (reaches(nulls), 2)):
        assert told is not None
        assert told.tolist() == [3.0 * times, 4.0 * times]
    assert most(nulls[2:]) is reaches(nulls[2:]) is None
