"""What the constant part and the shown latents say, through both heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.latents import top_tokens
from finetrace.engine import Subject
from finetrace.methods.sae_difference.result import CONSTANT_PART

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
    """vectors: the constant part, then the shown latents' directions. sizes: root mean squares of what each adds to a token."""
    found = top_tokens(vectors, subject, count).data
    latents = np.concatenate([[CONSTANT_PART], shown]).astype(np.int64)
    data: dict[str, np.ndarray | list[str]] = {"latent": latents[np.asarray(found["vector"], np.int64)]}
    table = Columns(data | {name: found[name] for name in COLUMNS[1:]})
    known = subject.vocabulary
    columns = np.flatnonzero(~(known.special | known.dead))
    peaks = np.zeros(len(columns), np.float32)
    reach = np.zeros(len(columns), np.float32)
    # One at a time: of a large vocabulary each is a megabyte.
    for vector, size in zip(vectors, sizes.tolist(), strict=True):
        norm = vector.double().square().mean().sqrt()
        if float(norm) > 0:
            logits = (
                subject.lens((vector.double() / norm).float()[None], True)[0][0].double().numpy()[columns]
            )
            logits -= logits.mean()
            peaks = np.maximum(peaks, logits.astype(np.float32))
            reach = np.maximum(reach, (logits * size).astype(np.float32))
    return Words(table, known.ids[columns], peaks, reach)
