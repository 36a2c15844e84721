"""What the constant part and the shown latents say, through both heads, and beside what the nulls' say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.findings import TOGETHER, Findings
from finetrace.dictionaries.latents import top_tokens
from finetrace.engine import Subject

__all__ = ["Words", "joined", "most", "moved_most", "no_words", "nulls_say", "reaches", "said", "words"]

_READ, _LATENTS = 32, 1024
"""Vectors through the heads at once, as each is a megabyte of a large vocabulary; and latents whose pushes are summed."""
COLUMNS = ("latent", "head", "sign", "rank", "token", "token_id", "logit")
_WORDS, _SAID = 8, 12


@dataclass(frozen=True, eq=False)
class Words:
    """table: latent, head, sign, rank, token, token_id, logit: of the constant part (CONSTANT_PART) and the shown latents; then of
    all TOGETHER, with the reach in the logit's place.

    token_ids: tokens that can be read. Of each, float32: peaks, the largest centred logit that a shown latent or the constant
    part gives it, at a root mean square of 1; reach, how far all of them together push it up: the root of the sum, over the
    constant part and every latent, of (the centred logit, where above 0, times the vector's size)^2.
    """

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
    """vectors: the constant part, then what every latent writes; sizes: root mean squares of what each adds to a token, NaN for
    a latent that does not fire. shown: the latents that are read one by one."""
    read = np.concatenate([[0], shown + 1]).astype(np.int64)
    found = top_tokens(vectors[torch.from_numpy(read)], subject, count).data
    # The constant part is read first, and its place among latents is CONSTANT_PART.
    columns: dict[str, np.ndarray | list[str]] = {"latent": read[np.asarray(found["vector"], np.int64)] - 1}
    columns |= {name: found[name] for name in COLUMNS[1:]}
    known = subject.vocabulary
    readable = np.flatnonzero(~(known.special | known.dead))
    peaks = np.zeros(len(readable))
    for logits in _centred(subject, vectors[torch.from_numpy(read)], readable):
        peaks = np.maximum(peaks, logits.max(0))
    reach = _reach(subject, vectors, np.nan_to_num(sizes), readable)
    best = np.argsort(-reach, kind="stable")[:count] if reach.any() else np.zeros(0, np.int64)
    pushed: dict[str, np.ndarray | list[str]] = {
        "latent": np.full(len(best), TOGETHER),
        "head": ["base"] * len(best),
        "sign": ["promoted"] * len(best),
        "rank": np.arange(len(best)) + 1,
        "token": [known.texts[i] for i in readable[best].tolist()],
        "token_id": known.ids[readable[best]],
        "logit": reach[best],
    }
    table = Columns({name: _after(columns[name], pushed[name]) for name in COLUMNS})
    return Words(table, known.ids[readable], peaks.astype(np.float32), reach.astype(np.float32))


def _after(one: np.ndarray | list[str], other: np.ndarray | list[str]) -> np.ndarray | list[str]:
    return [*one, *other] if isinstance(one, list) else np.concatenate([one, np.asarray(other)])


def _reach(
    subject: Subject, vectors: Float[Tensor, "vector d_model"], sizes: np.ndarray, readable: np.ndarray
) -> np.ndarray:
    """Of each token, see `Words`."""
    largest = np.argsort(-sizes, kind="stable")[:_LATENTS]
    largest = np.sort(largest[sizes[largest] > 0])
    total, at = np.zeros(len(readable)), 0
    for logits in _centred(subject, vectors[torch.from_numpy(largest)], readable):
        some = sizes[largest[at : at + len(logits)], None]
        total += np.square(np.maximum(logits, 0) * some).sum(0)
        at += len(logits)
    return np.sqrt(total)


def _centred(
    subject: Subject, vectors: Float[Tensor, "vector d_model"], readable: np.ndarray
) -> Iterator[np.ndarray]:
    """Logits through the base's head, [vector, token], of vectors at a root mean square of 1, in portions; 0 of a vector of 0."""
    for some in vectors.double().split(_READ):
        size = some.square().mean(1, keepdim=True).sqrt()
        unit = (some / size.where(size > 0, 1.0)).float()
        logits = subject.lens(unit, True)[0].double().numpy()[:, readable]
        yield (logits - logits.mean(1, keepdims=True)) * (size > 0).numpy()


def most(nulls: Sequence[Findings]) -> np.ndarray | None:
    """The largest centred logit of each token, [token], that a shown latent of any null gives it; None without."""
    rows = [null.peaks for null in nulls if len(null.peaks)]
    return np.stack(rows).max(0) if rows else None


def reaches(nulls: Sequence[Findings]) -> np.ndarray | None:
    """How far the null that pushes each token furthest does so, [token]; None without."""
    rows = [null.reach for null in nulls if len(null.reach)]
    return np.stack(rows).max(0) if rows else None


def moved_most(result: Findings, n: int) -> tuple[int, ...]:
    """Ids of the `n` tokens that the latents and the constant part push up most together (`Words.reach`); none where there is no
    difference."""
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


def joined(words: Columns, latent: int) -> str | None:
    """The first words of a latent, for a table's cell; None where it has none."""
    return " · ".join(text.strip() or repr(text) for text in _first(words, latent, _WORDS)) or None


def said(result: Findings) -> str:
    """The first words of all together, as one quotation, which a report that hides words takes out as one."""
    found = dict.fromkeys(word.strip() or repr(word) for word in _first(result.words, TOGETHER, _SAID))
    return f"“{' · '.join(found)}”" if found else "nothing that can be read"


def _first(words: Columns, latent: int, count: int) -> list[str]:
    data = words.data
    return [str(data["token"][i]) for i in _promoted(words, latent) if int(data["rank"][i]) <= count]


def _promoted(words: Columns, latent: int) -> list[int]:
    """Rows of what a latent makes likelier through the base's head."""
    data = words.data
    places = zip(data["latent"], data["head"], data["sign"], strict=True)
    return [i for i, place in enumerate(places) if place == (latent, "base", "promoted")]
