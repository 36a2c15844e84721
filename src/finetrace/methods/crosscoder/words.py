"""What the mean change and the shown latents add to the tuned model beside the base, read through both heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.latents import top_tokens
from finetrace.engine import Subject
from finetrace.methods.crosscoder.result import CONSTANT_PART

__all__ = ["Words", "no_words", "words"]

COLUMNS = ("latent", "head", "sign", "rank", "token", "token_id", "logit")


@dataclass(frozen=True, eq=False)
class Words:
    """table, token_ids, peaks, reach: of `Result`."""

    table: Columns
    token_ids: np.ndarray
    peaks: np.ndarray
    reach: np.ndarray


def no_words() -> Words:
    nothing = np.zeros(0, np.float32)
    return Words(Columns({name: [] for name in COLUMNS}), np.zeros(0, np.int64), nothing, nothing)


def words(
    subject: Subject,
    vectors: Float[Tensor, "vector d_model"],
    sizes: np.ndarray,
    shown: np.ndarray,
    count: int,
) -> Words:
    """vectors: the mean change, then what the shown latents add. sizes: root mean squares of what each adds to a token."""
    found = top_tokens(vectors, subject, count).data
    latents = np.concatenate([[CONSTANT_PART], shown]).astype(np.int64)
    columns: dict[str, np.ndarray | list[str]] = {"latent": latents[np.asarray(found["vector"], np.int64)]}
    table = Columns(columns | {name: found[name] for name in COLUMNS[1:]})
    known = subject.vocabulary
    readable = np.flatnonzero(~(known.special | known.dead))
    peaks, reach = np.zeros((2, len(readable)), np.float32)
    # One at a time: of a large vocabulary each is a megabyte.
    for vector, size in zip(vectors, sizes.tolist(), strict=True):
        norm = vector.double().square().mean().sqrt()
        if float(norm) > 0:
            logits = subject.lens((vector.double() / norm).float()[None], True)[0][0].double().numpy()
            logits = logits[readable] - logits[readable].mean()
            peaks = np.maximum(peaks, logits).astype(np.float32)
            reach = np.maximum(reach, logits * size).astype(np.float32)
    return Words(table, known.ids[readable], peaks, reach)
