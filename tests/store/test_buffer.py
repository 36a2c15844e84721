"""The shuffle buffer gives every row once, in an order that its seed fixes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.store.buffer import shuffled


def _run(blocks, size, batch, seed=0, **options):
    rows = (torch.tensor(block, dtype=torch.int64).reshape(-1, 1).repeat(1, 2) for block in blocks)
    return list(shuffled(rows, size, batch, torch.Generator().manual_seed(seed), **options))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=12),
    st.integers(1, 9),
    st.integers(0, 12),
    st.integers(0, 2**32),
)
def test_every_row_comes_once_however_the_stream_is_cut(cuts, batch, more, seed):
    n = sum(cuts)
    ends = [sum(cuts[:i]) for i in range(len(cuts) + 1)]
    blocks = [list(range(a, b)) for a, b in pairwise(ends)]
    found = _run(blocks, batch + more, batch, seed)
    rows = [row for one in found for row in one[:, 0].tolist()]
    assert sorted(rows) == list(range(n))
    assert all(torch.equal(one[:, 0], one[:, 1]) for one in found), "a row stays together"
    assert all(len(one) == batch for one in found[:-1])
    whole = _run([list(range(n))], batch + more, batch, seed)
    assert [one.tolist() for one in whole] == [one.tolist() for one in found]
    short = _run(blocks, batch + more, batch, seed, last=False)
    assert [one.tolist() for one in short] == [one.tolist() for one in found if len(one) == batch]


def test_rows_that_come_together_are_parted_and_the_seed_decides_how():
    first, again, other = (_run([list(range(4000))], 1000, 100, seed) for seed in (1, 1, 2))
    assert [one.tolist() for one in first] == [one.tolist() for one in again]
    assert [one.tolist() for one in first] != [one.tolist() for one in other]
    few = torch.cat(_run([list(range(400))], 1000, 100))[:, 0]
    assert few.diff().abs().float().median() > 10, "also those that never fill the buffer"
    # A row of the first thousand waits for its turn with odds of one half a round: some of them come late.
    assert min(first[25][:, 0].tolist()) < 1000
    # What is in a batch is far apart in the stream: neighbours would differ by 1.
    assert torch.cat(first)[:, 0].float().diff().abs().median() > 100


def test_memory_is_the_buffer_whatever_the_length():
    """The stream is read no further than the buffer needs to be full."""
    read = 0

    def rows():
        nonlocal read
        for _ in range(100):
            read += 10
            yield torch.zeros(10, 3)

    stream = shuffled(rows(), 40, 10, torch.Generator().manual_seed(0))
    given_out = 0
    for one in stream:
        given_out += len(one)
        assert read - given_out <= 40
    assert given_out == 1000


def test_a_batch_is_the_callers_own():
    stream = shuffled(iter([torch.arange(8.0), torch.arange(8.0)]), 4, 2, torch.Generator().manual_seed(0))
    total = 0.0
    for one in stream:
        total += float(one.sum())
        one.fill_(100.0)
    assert total == 56.0


def test_what_cannot_be_is_said():
    generator = torch.Generator()
    with pytest.raises(BadInput, match=r"5 rows cannot give batches of 6"):
        next(shuffled(iter([]), 5, 6, generator))
    blocks = [torch.zeros(1, 3), torch.zeros(1, 4)]
    with pytest.raises(BadInput, match=r"rows \[3\] torch.float32 was given \[4\]"):
        list(shuffled(blocks, 5, 2, generator))
