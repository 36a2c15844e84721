"""What the constant part and the shown latents say, through both heads, and beside what the nulls' say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.findings import CONSTANT_PART, Findings
from finetrace.dictionaries.latents import top_tokens
from finetrace.engine import Subject

__all__ = ["Words", "joined", "most", "moved_most", "no_words", "nulls_say", "said", "words"]

COLUMNS = ("latent", "head", "sign", "rank", "token", "token_id", "logit")
_WORDS, _SAID = 8, 3


@dataclass(frozen=True, eq=False)
class Words:
    """table: latent (CONSTANT_PART for the constant part), head, sign, rank, token, token_id, logit. token_ids: tokens that can
    be read; peaks, reach: float32 of each, the largest centred logit that a shown latent or the constant part gives it, and
    the largest of those times its size."""

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
    """vectors: the constant part, then what the shown latents write. sizes: root mean squares of what each adds to a token."""
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


def most(nulls: Sequence[Findings]) -> np.ndarray | None:
    """The largest centred logit of each token, [token], that a shown latent of any null gives it; None without."""
    rows = [null.peaks for null in nulls if len(null.peaks)]
    return np.stack(rows).max(0) if rows else None


def moved_most(result: Findings, n: int) -> tuple[int, ...]:
    """Ids of the `n` tokens whose logit is moved most by one of the shown latents, or by the constant part, at its usual
    strength; none where there is no difference."""
    if not result.reach.any():
        return ()
    order = np.argsort(-result.reach, kind="stable")[:n]
    return tuple(int(i) for i in result.token_ids[order])


def nulls_say(result: Findings, nulls: Sequence[Findings], latent: int) -> float | None:
    """The share of a latent's words that a null's latents, or its constant part, say as loudly."""
    theirs, chosen = most(nulls), _promoted(result.words, latent)
    if theirs is None or not chosen:
        return None
    at = np.searchsorted(result.token_ids, np.asarray(result.words.data["token_id"])[chosen])
    return float((theirs[at] >= np.asarray(result.words.data["logit"])[chosen]).mean())


def joined(words: Columns, latent: int) -> str:
    """The first words of a latent, for a table's cell."""
    return " · ".join(text.strip() or repr(text) for text in _first(words, latent, _WORDS))


def said(result: Findings) -> str:
    """A few words, quoted: the first of each of the shown latents, or those of the constant part alone."""
    parts = result.shown.tolist() or [CONSTANT_PART]
    each = _SAID if len(parts) > 1 else 2 * _SAID
    found = dict.fromkeys(
        word.strip() or word for latent in parts[:_SAID] for word in _first(result.words, latent, each)
    )
    return ", ".join(f"“{word}”" for word in found) or "nothing that can be read"


def _first(words: Columns, latent: int, count: int) -> list[str]:
    data = words.data
    return [str(data["token"][i]) for i in _promoted(words, latent) if int(data["rank"][i]) <= count]


def _promoted(words: Columns, latent: int) -> list[int]:
    """Rows of what a latent makes likelier through the base's head."""
    data = words.data
    places = zip(data["latent"], data["head"], data["sign"], strict=True)
    return [i for i, place in enumerate(places) if place == (latent, "base", "promoted")]
