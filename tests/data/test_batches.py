"""Shards and batches: every scored position once, whatever the sizes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.samples import small_tokenizer

from finetrace.core.errors import BadInput
from finetrace.data import Batch, Corpus, Row, batches, build_corpus, padded_tokens, shards

TOKENIZER = small_tokenizer()
texts = st.lists(st.sampled_from(["a", "cat ", "dog ", "mat ", "red "]), min_size=1, max_size=9).map("".join)
corpora = st.lists(
    st.builds(Row, text=texts, messages=st.none(), slice=st.sampled_from(["x", "y"])), min_size=1, max_size=12
).map(lambda rows: build_corpus(rows, TOKENIZER))


def _all(corpus: Corpus, batch_size: int, per_shard: int) -> list[Batch]:
    return [batch for shard in shards(corpus, per_shard) for batch in batches(corpus, shard, batch_size)]


def _positions(found: list[Batch]) -> Counter[tuple[int, ...]]:
    """(key, slice, position, id, next id, role) of every kept position."""
    count: Counter[tuple[int, ...]] = Counter()
    for batch in found:
        for b, p in batch.keep.nonzero().tolist():
            fields = (batch.position, batch.ids, batch.next_id, batch.role)
            count[int(batch.key[b]), int(batch.slice[b]), *(int(field[b, p]) for field in fields)] += 1
    return count


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(1, 60))
def test_every_scored_position_is_read_once(corpus: Corpus, batch_size: int, per_shard: int):
    found = _positions(_all(corpus, batch_size, per_shard))
    wanted = Counter(
        (int(key), int(code), p, int(t.ids[p]), int(t.ids[p + 1]), int(t.role[p]))
        for key, code, t in zip(corpus.keys, corpus.slice_of, corpus.tokens, strict=True)
        for p in range(len(t) - 1)
    )
    assert found == wanted
    assert found.total() == corpus.scored


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(1, 60))
def test_batches_are_right_padded_rows_of_one_shard_longest_first(
    corpus: Corpus, batch_size: int, per_shard: int
):
    cost = 0
    for shard in shards(corpus, per_shard):
        found = list(batches(corpus, shard, batch_size))
        rows = torch.cat([batch.row for batch in found]).tolist()
        assert sorted(rows) == list(range(shard.start, shard.stop))
        assert rows == sorted(rows, key=lambda i: (-len(corpus.tokens[i]), i))
        for batch in found:
            assert len(batch.row) <= batch_size
            lengths = batch.attention.sum(1)
            assert lengths.tolist() == [len(corpus.tokens[i]) for i in batch.row.tolist()]
            assert batch.ids.shape[1] == lengths.max()
            real = batch.position < lengths[:, None]
            assert torch.equal(batch.attention.bool(), real)
            assert not batch.ids[~real].any()
            assert not batch.role[~real].any()
            assert not batch.next_id[~batch.keep].any()
            assert torch.equal(batch.keep.sum(1), lengths - 1)
            assert np.array_equal(batch.key, corpus.keys[batch.row.numpy()])
            cost += batch.ids.numel()
    assert cost == padded_tokens(corpus, batch_size, per_shard)


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(1, 60))
def test_shards_are_contiguous_and_within_their_budget(corpus: Corpus, per_shard: int):
    found = shards(corpus, per_shard)
    assert [shard.index for shard in found] == list(range(len(found)))
    assert [i for shard in found for i in range(shard.start, shard.stop)] == list(range(len(corpus)))
    sizes = [sum(len(t) for t in corpus.tokens[shard.start : shard.stop]) for shard in found]
    assert all(
        size <= per_shard or shard.stop - shard.start == 1 for size, shard in zip(sizes, found, strict=True)
    )
    for i, size in enumerate(sizes[:-1]):  # no shard could have taken the next row as well
        assert size + len(corpus.tokens[found[i].stop]) > per_shard


@settings(max_examples=30, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(1, 5), st.integers(1, 60))
def test_sizes_move_no_position(corpus: Corpus, one: int, other: int, per_shard: int):
    assert _positions(_all(corpus, one, per_shard)) == _positions(_all(corpus, other, 16384))


def test_types():
    (batch,) = _all(build_corpus([Row("a cat", None, "text"), Row("a", None, "own")], TOKENIZER), 2, 100)
    assert {batch.row.dtype, batch.slice.dtype, batch.ids.dtype, batch.attention.dtype} == {torch.int64}
    assert {batch.position.dtype, batch.next_id.dtype} == {torch.int64}
    assert (batch.keep.dtype, batch.role.dtype, batch.key.dtype) == (torch.bool, torch.int8, np.uint64)


def test_the_content_of_a_shard_changes_with_its_rows_alone():
    rows = [Row(text, None, "text") for text in ("a cat", "a dog", "a cat", "the mat")]
    whole = shards(build_corpus(rows, TOKENIZER), 4)
    assert len({shard.content for shard in whole}) == 4  # the second "a cat" has another key
    changed = shards(build_corpus([*rows[:3], Row("the dog", None, "text")], TOKENIZER), 4)
    assert [a.content == b.content for a, b in zip(whole, changed, strict=True)] == [True, True, True, False]
    other = shards(build_corpus([*rows[:3], Row("the mat", None, "own")], TOKENIZER), 4)
    assert other[3].content != whole[3].content


def test_sizes_below_one_are_refused():
    corpus = build_corpus([Row("a cat", None, "text")], TOKENIZER)
    with pytest.raises(BadInput, match="tokens_per_shard is 0"):
        shards(corpus, 0)
    with pytest.raises(BadInput, match="batch_size is 0"):
        padded_tokens(corpus, 0)
