"""Which passages of a latent are kept, at the edges: of ranges, of near-duplicates, of equal texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.extremes import TOP, Extreme, Extremes
from finetrace.dictionaries.reading import tokens
from finetrace.engine import Step

D = 2


def dictionary() -> Dictionary:
    """Latent i reads coordinate i of the change."""
    return Dictionary(
        encoder=torch.eye(D)[None], encoder_bias=torch.zeros(D), decoder=torch.eye(D)[None], decoder_bias=torch.zeros(1, D),
        mean=torch.zeros(1, D), scale=torch.ones(1), owner=torch.zeros(D, dtype=torch.int8), threshold=0.0, kind="relu",
    )  # fmt: skip


def found(
    texts: Sequence[Sequence[int]],
    scores: Sequence[float],
    rows: Sequence[int],
    keys: Sequence[int],
    keep: int = 5,
) -> tuple[Extreme, ...]:
    """Texts of one length, one after the other; latent 0 has its score at the third token of each."""
    seen = Extremes(dictionary(), "difference", np.array([0]), np.array([4.0]), keep=keep)
    for text, score, row, key in zip(texts, scores, rows, keys, strict=True):
        ids = torch.tensor([text])
        place = torch.arange(len(text))[None]
        base = torch.zeros(1, len(text), D)
        tuned = base.clone()
        tuned[0, 2, 0] = score
        both = (base, tuned)
        one = Step(
            row=torch.tensor([row]), key=np.array([key], np.uint64), slice=torch.zeros(1, dtype=torch.long), ids=ids,
            keep=place < len(text) - 1, role=torch.ones_like(ids), position=place, next_id=ids.roll(-1, 1),
            hidden=lambda layer, both=both: both,
        )  # fmt: skip
        seen.see(one, tokens(one, 0))
    return seen.passages()


def test_a_range_holds_its_lower_end_and_a_text_is_shown_to_its_last_token():
    texts = [range(10 * i, 10 * i + 7) for i in range(4)]
    shown = found(texts, [1.0, 2.0, 3.0, 4.0], range(4), range(4))
    bins = {one.row: one.bin for one in shown if one.bin != TOP}
    assert bins == {0: "0.25-0.5", 1: "0.5-0.75", 2: "0.75-0.95", 3: "0.95-1"}
    assert all(one.ids == tuple(texts[one.row]) for one in shown)


def test_of_equal_texts_the_first_row_stands_whichever_came_first():
    for rows in ([5, 2], [2, 5]):
        shown = found([range(7)] * 2, [1.0, 1.0], rows, [9, 9])
        assert [(one.row, one.folded) for one in shown] == [(2, 0)] * 2


def test_half_of_what_both_hold_is_a_near_duplicate():
    half = found([range(7), range(1, 8)], [2.0, 1.0], [0, 1], [0, 1], keep=1)
    assert [(one.row, one.folded) for one in half if one.bin == TOP] == [(0, 1)], (
        "2 of 4 grams, and one is shown"
    )
    less = found([range(6), [*range(5), 9]], [2.0, 1.0], [0, 1], [0, 1])
    assert [(one.row, one.folded) for one in less if one.bin == TOP] == [(0, 0), (1, 0)], "1 of 3"
