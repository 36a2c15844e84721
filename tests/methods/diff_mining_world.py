"""Logit differences made by hand, shown to an observer as the pass would show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrace.engine import LogitChunk, Step, Subject
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.observe import DiffMining, observer
from finetrace.models import Vocabulary


@dataclass(frozen=True)
class Text:
    """One text: `difference` [pos, vocab] of the logits at its positions; ids are one longer."""

    row: int
    key: int
    slice: int
    ids: Tensor
    difference: Tensor
    base: Tensor  # log-probabilities [pos, vocab]


def subject(
    vocab: int = 200,
    slices: tuple[str, ...] = ("a", "b"),
    *,
    special: Sequence[int] = (),
    dead: Sequence[int] = (),
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Subject:
    names = tuple(texts or (f" w{i}" for i in range(vocab)))
    masks = [np.isin(np.arange(vocab), list(which)) for which in (special, dead)]
    # Ids that are not the columns: with a shared vocabulary they are not.
    known = Vocabulary(np.arange(vocab) * 2 + 1, names, *masks)
    return Subject(
        slices=slices,
        n_layers=2,
        d_model=4,
        vocab_size=vocab,
        seed=seed,
        spell=lambda ids: tuple(f" t{i}" for i in ids),
        words=lambda: known,
        lens=lambda vectors, direction=True: (vectors, vectors),
    )


def noise(vocab: int = 200, n: int = 12, *, seed: int = 0, size: float = 1.0, slices: int = 2) -> list[Text]:
    """Texts of 3 to 30 positions whose differences are independent normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for row in range(n):
        length = int(torch.randint(3, 31, (1,), generator=generator))
        texts.append(
            Text(
                row=row,
                key=0x9E3779B97F4A7C15 * (1 + row + 1000 * seed) % 2**64,
                slice=row % slices,
                ids=torch.randint(0, vocab, (length + 1,), generator=generator),
                difference=torch.randn(length, vocab, generator=generator) * size,
                base=torch.randn(length, vocab, generator=generator).log_softmax(-1),
            )
        )
    return texts


def feed(seen: DiffMining, texts: Sequence[Text], *, batch: int = 4, chunk: int = 37) -> DiffMining:
    """Shows `texts` in batches, and their positions in chunks that do not end where texts do."""
    for start in range(0, len(texts), batch):
        _show(seen, texts[start : start + batch], chunk)
    return seen


def _show(seen: DiffMining, texts: Sequence[Text], chunk: int) -> None:
    width = max(len(t.ids) for t in texts)
    ids, keep = (
        torch.zeros(len(texts), width, dtype=torch.long),
        torch.zeros(len(texts), width, dtype=torch.bool),
    )
    for i, text in enumerate(texts):
        ids[i, : len(text.ids)], keep[i, : len(text.ids) - 1] = text.ids, True
    following = ids.roll(-1, 1).where(keep, 0)
    step = Step(
        row=torch.tensor([t.row for t in texts]),
        key=np.array([t.key for t in texts], np.uint64),
        slice=torch.tensor([t.slice for t in texts]),
        ids=ids,
        keep=keep,
        role=torch.zeros(ids.shape, dtype=torch.int8),
        position=torch.arange(width).expand(ids.shape),
        next_id=following,
        hidden=lambda layer: (torch.zeros(0), torch.zeros(0)),
    )
    seen.see(step)
    rows, positions = keep.nonzero(as_tuple=True)
    difference, base = torch.cat([t.difference for t in texts]), torch.cat([t.base for t in texts])
    for start in range(0, len(rows), chunk):
        cut = slice(start, start + chunk)
        where = (rows[cut], positions[cut])
        seen.see_logits(LogitChunk(step, where, following[where], base[cut], difference[cut]))


def mined(
    texts: Sequence[Text], known: Subject | None = None, *, batch: int = 4, chunk: int = 37, **options: Any
):
    """The result of a fresh observer that saw `texts`."""
    known = known or subject(texts[0].difference.shape[1])
    return feed(observer(Config(**options), known), texts, batch=batch, chunk=chunk).result()
