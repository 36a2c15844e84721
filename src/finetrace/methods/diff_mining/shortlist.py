"""A few tokens looked at closely: where they are promoted, and with which others, more often than by chance."""

from __future__ import annotations

import numpy as np

from finetrace.engine import Subject
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.counts import LEADING
from finetrace.methods.diff_mining.result import Moves, Shortlist
from finetrace.methods.diff_mining.variants import groups, plain, shown

# Most promoted tokens that are on every shortlist.
_FIRST = 10


def shortlist(config: Config, subject: Subject, sample: dict[str, np.ndarray], moves: Moves) -> Shortlist:
    """The user's words (in every spelling) and the most promoted tokens, at the sampled positions. moves: of all slices."""
    texts, of = subject.vocabulary.texts, groups(subject.vocabulary.texts, config.merge_variants)
    asked, unknown = _asked(config.shortlist, texts, of, moves.promoted)
    order = np.argsort(-moves.promoted, kind="stable")[:_FIRST]
    columns = np.array(list(dict.fromkeys([*asked, *order[moves.promoted[order] > 0].tolist()])), np.int64)
    spelling = shown(of, moves.as_spelt) if config.merge_variants else of
    entries = sample["ids"] >= 0
    rows = entries.any(1)
    there = (sample["ids"][rows, :, None] == columns).any(1).astype(np.int64)  # [position, token]
    where, position = sample["slice"][rows], np.minimum(sample["position"][rows], LEADING)
    _, text = np.unique(sample["key"][rows], return_inverse=True)
    n_texts = int(text.max()) + 1 if len(text) else 0
    in_text = np.zeros((n_texts, len(columns)), np.int64)
    np.maximum.at(in_text, text, there)
    return Shortlist(
        tokens=tuple(texts[i] for i in spelling[columns]),
        token_ids=tuple(int(i) for i in subject.vocabulary.ids[spelling[columns]]),
        asked=tuple(bool(i in asked) for i in columns.tolist()),
        unknown=unknown,
        by_slice=_tally(there, where, len(subject.slices)),
        by_position=_tally(there, position, LEADING + 1),
        together=there.T @ there,
        together_texts=in_text.T @ in_text,
        sampled_slices=np.bincount(where, minlength=len(subject.slices)).astype(np.int64),
        sampled_positions=np.bincount(position, minlength=LEADING + 1).astype(np.int64),
        positions=int(rows.sum()),
        texts=n_texts,
    )


def _asked(
    words: tuple[str, ...], texts: tuple[str, ...], of: np.ndarray, promoted: np.ndarray
) -> tuple[list[int], tuple[str, ...]]:
    """Columns of the commonest promoted spelling of each word, and the words that no token spells."""
    spellings: dict[str, list[int]] = {}
    for column, text in enumerate(texts):
        spellings.setdefault(plain(text), []).append(column)
    found, unknown = [], []
    for word in words:
        columns = spellings.get(plain(word), [])
        if columns:
            found.append(int(of[max(columns, key=lambda c: (promoted[c], -c))]))
        else:
            unknown.append(word)
    return found, tuple(unknown)


def _tally(there: np.ndarray, bins: np.ndarray, size: int) -> np.ndarray:
    counts = np.zeros((there.shape[1], size), np.int64)
    np.add.at(counts.T, bins, there)
    return counts
