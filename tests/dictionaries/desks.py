"""A desk whose texts have given hidden states, for methods that train dictionaries: no model, and no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetrace.data.roles import TEXT
from finetrace.engine import Step


def desk_of(
    base: Tensor,
    tuned: Tensor,
    directions: Tensor,
    folder: Path,
    *,
    ids: Tensor | None = None,
    role: Tensor | None = None,
    told: list[str] | None = None,
    slices: tuple[str, ...] = ("even", "odd"),
    first: int = 0,
) -> Any:
    """base, tuned: [text, pos, d]; the last position has no next token. directions: [token, d], what the head's token `first`
    + i is written by. ids: [text, pos], random without; texts of equal ids fall on one side."""
    texts, length = base.shape[:2]
    vocabulary = len(directions)
    if ids is None:
        ids = torch.randint(0, vocabulary, (texts, length), generator=torch.Generator().manual_seed(1))
    role = torch.full((texts, length), TEXT) if role is None else role
    keep = torch.ones(texts, length, dtype=torch.bool)
    keep[:, -1] = False
    keys = np.random.default_rng(0).integers(0, 2**63, texts).astype(np.uint64)

    def steps(layers: Sequence[float], *, shuffled: int | None = None) -> Iterator[Step]:
        del layers, shuffled
        for rows in torch.arange(texts).split(64):
            sides = (base[rows], tuned[rows])
            yield Step(
                row=rows, key=keys[rows.numpy()], slice=rows % len(slices), ids=ids[rows], keep=keep[rows],
                role=role[rows], position=torch.arange(length).expand(len(rows), -1), next_id=ids[rows],
                hidden=lambda layer, sides=sides: sides,
            )  # fmt: skip

    def lens(vectors: Tensor, direction: bool = True) -> tuple[Tensor, Tensor]:
        assert direction
        read = vectors.float() @ directions.T
        return read, read

    words = SimpleNamespace(
        special=np.zeros(vocabulary, bool), dead=np.zeros(vocabulary, bool), ids=np.arange(vocabulary) + first,
        texts=[f"f{i}" for i in range(vocabulary)],
    )  # fmt: skip
    subject = SimpleNamespace(
        slices=slices, n_layers=4, d_model=base.shape[2], lens=lens, vocabulary=words,
        spell=lambda ids: tuple(f"f{i}" for i in ids),
    )  # fmt: skip
    return SimpleNamespace(
        corpus=SimpleNamespace(
            tokens=[SimpleNamespace(ids=row.numpy(), scored=length - 1) for row in ids], slices=slices
        ),
        pair=SimpleNamespace(n_layers=4, d_model=base.shape[2]), steps=steps, seed=0, subject=subject,
        scratch=folder, files=folder, generator=lambda *salt: np.random.default_rng(len(salt)),
        advance=lambda done, total: None, tell=(told if told is not None else []).append,
    )  # fmt: skip
