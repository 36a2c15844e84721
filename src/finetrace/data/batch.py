"""Shards as padded tensors. The one module of this room that imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int8, Int64, UInt64
from torch import Tensor

from finetrace.data.corpus import Corpus
from finetrace.data.roles import TEMPLATE
from finetrace.data.shards import Shard, batch_rows

__all__ = ["Batch", "batches"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of one shard, right-padded to the longest of them, on the CPU.

    row: index into the corpus. key: the rows' uint64 keys. slice: index into `corpus.slices`. attention: 1 for tokens,
    0 for padding. keep: where position p has a next token (padding and last tokens are False). role: of token p.
    next_id: token p+1, 0 where not kept. Padding has id 0 and role `template`.
    """

    row: Int64[Tensor, " batch"]
    key: UInt64[np.ndarray, " batch"]
    slice: Int64[Tensor, " batch"]
    ids: Int64[Tensor, "batch pos"]
    attention: Int64[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    role: Int8[Tensor, "batch pos"]
    position: Int64[Tensor, "batch pos"]
    next_id: Int64[Tensor, "batch pos"]


def batches(corpus: Corpus, shard: Shard, batch_size: int) -> Iterator[Batch]:
    """Every row of `shard` once, longest first, at most `batch_size` at a time; never across shards."""
    for rows in batch_rows(corpus, shard, batch_size):
        yield _batch(corpus, rows)


def _batch(corpus: Corpus, rows: Int64[np.ndarray, " batch"]) -> Batch:
    lengths = np.array([len(corpus.tokens[i]) for i in rows], dtype=np.int64)
    shape = (len(rows), int(lengths.max()))
    ids = np.zeros(shape, dtype=np.int64)
    role = np.full(shape, TEMPLATE, dtype=np.int8)
    for at, i in enumerate(rows):
        ids[at, : lengths[at]] = corpus.tokens[i].ids
        role[at, : lengths[at]] = corpus.tokens[i].role
    position = np.broadcast_to(np.arange(shape[1], dtype=np.int64), shape)
    keep = position < lengths[:, None] - 1
    next_id = np.zeros(shape, dtype=np.int64)
    next_id[:, :-1] = ids[:, 1:]
    return Batch(
        row=torch.from_numpy(rows.astype(np.int64)),
        key=corpus.keys[rows],
        slice=torch.from_numpy(corpus.slice_of[rows].astype(np.int64)),
        ids=torch.from_numpy(ids),
        attention=torch.from_numpy((position < lengths[:, None]).astype(np.int64)),
        keep=torch.from_numpy(keep),
        role=torch.from_numpy(role),
        position=torch.from_numpy(position.copy()),
        next_id=torch.from_numpy(np.where(keep, next_id, 0)),
    )
