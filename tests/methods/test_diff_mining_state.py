"""What is merged, saved and restored: the same in any cut, and no larger for a longer corpus."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.methods.diff_mining_world import Text, feed, noise, subject

from finetrace.core.result import encode
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.observe import DiffMining, observer
from finetrace.methods.diff_mining.sample import Sample

VOCAB = 120
KNOWN = subject(VOCAB, ("a", "b", "unseen"), special=(3,))


def fresh(**options: Any) -> DiffMining:
    return observer(replace(Config(top_k=5, topic_positions=64), **options), KNOWN)


def restored(seen: DiffMining, **options: Any) -> DiffMining:
    again = fresh(**options)
    again.restore({name: tensor.clone() for name, tensor in seen.state().items()})
    return again


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k].nan_to_num(-7.0), other[k].nan_to_num(-7.0))
        for k in one
    )


def same_results(one: Any, other: Any) -> bool:
    a, b = encode(one), encode(other)
    return a.body == b.body and all(a.arrays[k].tobytes() == b.arrays[k].tobytes() for k in a.arrays)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, 14), max_size=3), st.booleans())
def test_folding_restored_shards_is_folding_shards(seed: int, cuts: list[int], merge: bool):
    """To the last bit: a resumed run ends where an unbroken one does."""
    texts, bounds = noise(VOCAB, 14, seed=seed), sorted({0, 14, *cuts})
    shards = [feed(fresh(merge_variants=merge), texts[a:b]) for a, b in pairwise(bounds) if a < b]
    unbroken, resumed = fresh(merge_variants=merge), fresh(merge_variants=merge)
    for shard in shards:
        resumed.merge(restored(shard, merge_variants=merge))
        unbroken.merge(shard)
    assert same(unbroken.state(), resumed.state())
    assert same(unbroken.state(), restored(unbroken, merge_variants=merge).state())
    assert same_results(unbroken.result(), resumed.result())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 13))
def test_cuts_move_no_count(seed: int, cut: int):
    """Sums may differ in the last bits (a chunk's are in float32), counts and the sample may not."""
    texts = noise(VOCAB, 14, seed=seed)
    whole, first = feed(fresh(), texts), feed(fresh(), texts[:cut])
    first.merge(feed(fresh(), texts[cut:]))
    one, other = whole.state(), first.state()
    for name, tensor in one.items():
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, other[name]), name
        else:
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-4, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 40), st.permutations(range(6)))
def test_the_sample_is_the_same_in_any_order(seed: int, keep: int, order: list[int]):
    random = np.random.default_rng(seed)
    parts = []
    for key in range(6):
        n = int(random.integers(1, 20))
        keys = np.full(n, random.integers(0, 2**63), np.uint64)
        ids, values = random.integers(0, 9, (n, 2)), random.random((n, 2)).astype(np.float32)
        parts.append((keys, np.full(n, key), np.arange(n), ids, values))
    straight, shuffled, merged = Sample(keep, 2, 1), Sample(keep, 2, 1), Sample(keep, 2, 1)
    for part in parts:
        straight.offer(*part)
    for i in order:
        shuffled.offer(*parts[i])
        one = Sample(keep, 2, 1)
        one.offer(*parts[i])
        merged.merge(one)
    assert same(straight.state(), shuffled.state())
    assert same(straight.state(), merged.state())
    assert len(straight.columns()["rank"]) == min(keep, sum(len(p[0]) for p in parts))


def test_the_sample_is_uniform_over_positions():
    """Each of 400 positions is drawn in a tenth of the seeds, within four standard errors."""
    keys, position = np.repeat(np.arange(20, dtype=np.uint64), 20), np.tile(np.arange(20), 20)
    drawn = np.zeros((20, 20))
    for seed in range(500):
        sample = Sample(40, 1, seed)
        sample.offer(
            keys, np.zeros(400, int), position, np.zeros((400, 1), int), np.ones((400, 1), np.float32)
        )
        found = sample.columns()
        np.add.at(drawn, (found["key"].astype(int), found["position"]), 1)
    assert drawn.sum() == 500 * 40
    # Binomial(500, 0.1) has deviation 6.7; the largest of 400 is within 4.5 of them.
    assert np.abs(drawn - 50).max() < 4.5 * 6.7


def sizes(seen: DiffMining) -> dict[str, int]:
    return {name: tensor.numel() for name, tensor in seen.state().items() if not name.startswith("texts.")}


def again(texts: list[Text], times: int) -> list[Text]:
    """The same texts several times over, as other rows."""
    return [
        Text(t.row + 1000 * i, (t.key + i) % 2**64, t.slice, t.ids, t.difference, t.base)
        for i in range(times)
        for t in texts
    ]


def test_memory_is_flat_in_the_corpus():
    texts = noise(VOCAB, 20, seed=8)
    one, four = feed(fresh(), texts), feed(fresh(), again(texts, 4))
    spans = {
        name for name in sizes(one) if name in {"spans.ids", "spans.values"}
    }  # as long as what is around a span
    assert {k: v for k, v in sizes(one).items() if k not in spans} == {
        k: v for k, v in sizes(four).items() if k not in spans
    }
    assert one.state()["texts.row"].numel() * 4 == four.state()["texts.row"].numel()
    assert len(four.state()["sample.rank"]) == 64


def test_slices_without_positions_take_no_room_in_the_journal():
    seen = feed(fresh(), noise(VOCAB, 4, slices=1))
    assert seen.state()["seen"].tolist() == [0]
    assert seen.state()["tokens.promoted"].shape == (1, VOCAB)
    assert restored(seen).result().moves["unseen"].positions == 0
