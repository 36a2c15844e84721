"""The four words at their edges, and the two hypotheses as seed 003 names them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetrace.core.errors import BadInput
from finetrace.stats import GroupVerdict, Pooled, fragile, group_verdict, similar


def found(value: float, se: float | None, df: float = 20) -> Pooled:
    return Pooled(value, se, df, 1, 21, 21, 0, np.zeros(1))


@pytest.mark.parametrize(
    ("value", "se", "word"),
    [
        (0.30, 0.05, "different"),
        (-0.30, 0.05, "different"),
        (0.04, 0.01, "different-but-negligible"),
        (0.01, 0.02, "equivalent"),
        (0.01, 0.20, "inconclusive"),
        (0.08, 0.03, "inconclusive"),  # not 0, but neither inside nor outside the margin
        (0.20, 0.15, "inconclusive"),
    ],
)
def test_the_word(value, se, word):
    verdict = group_verdict(found(value, se))
    assert verdict.word == word
    assert bool(verdict.reason) == (word == "inconclusive")


def test_equivalent_is_the_narrow_interval_inside_the_margin():
    for value in np.linspace(-0.12, 0.12, 25):
        pool = found(float(value), 0.02)
        narrow = pool.interval(0.90)
        assert narrow is not None
        inside = -math.log(1.1) < narrow.low and narrow.high < math.log(1.1)
        verdict = group_verdict(pool)
        assert (verdict.word in ("equivalent", "different-but-negligible")) == inside


def test_a_corrected_p_stands_in_for_the_interval():
    pool = found(0.20, 0.09)
    assert group_verdict(pool).word == "different"
    assert group_verdict(pool, p_adjusted=0.15).word == "inconclusive"


def test_what_cannot_be_judged_says_why():
    assert "no data" in group_verdict(None).reason
    assert "one layer of one run" in group_verdict(found(0.3, None)).reason
    with pytest.raises(BadInput, match="margin is positive"):
        group_verdict(found(0.1, 0.1), 0.0)


def verdict(word: str) -> GroupVerdict:
    return GroupVerdict(word, "why" if word == "inconclusive" else "", None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("matched", "placebo", "theta", "other", "word"),
    [
        ("different", "different", 0.3, 0.3, "supported"),
        ("different", "different", -0.3, 0.3, "not supported"),
        ("different", "equivalent", 0.3, 0.0, "not supported"),
        ("different", "inconclusive", 0.3, 0.1, "undecided"),
        ("inconclusive", "equivalent", 0.1, 0.0, "not supported"),
        ("inconclusive", "inconclusive", None, None, "undecided"),
    ],
)
def test_h1_needs_both_controls(matched, placebo, theta, other, word):
    assert fragile(verdict(matched), verdict(placebo), theta, other).word == word


def test_h2_is_never_proved():
    equal = similar(verdict("equivalent"))
    assert equal.word == "consistent"
    assert "no proof of new circuits" in equal.sentence
    assert similar(verdict("different")).word == "not supported"
    assert similar(verdict("inconclusive")).word == "undecided"
