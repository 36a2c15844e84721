"""Text that hides or reorders itself is shown for what it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetrace.drawing.text import one_line, shorten, token_parts, visible, visible_token

HIDDEN = [
    "\u202e",
    "\u200b",
    "\u2066",
    "\x1b",
    "\x00",
    "\ud800",
    "\ue000",
    "\u2028",
    "\u00ad",
    "\ufeff",
    "\U000e0041",
]


@pytest.mark.parametrize("char", HIDDEN)
def test_a_character_that_cannot_be_seen_is_shown_as_its_code_point(char: str):
    shown = f"a⟨U+{ord(char):04X}⟩b"
    assert visible(f"a{char}b") == shown
    assert visible_token(f"a{char}b") == shown


def test_ordinary_text_is_left_alone():
    for text in ("plain", "naïve café", "日本語", "a b\n\tc", "🙂", "é ‖ ≤"):
        assert visible(text) == text


@given(st.text(alphabet=st.characters()))
def test_nothing_invisible_is_left(text: str):
    bad = {"Cc", "Cf", "Cs", "Co"}
    assert not [c for c in visible_token(text) if unicodedata.category(c) in bad]
    assert not [c for c in visible(text) if unicodedata.category(c) in bad and c not in "\n\t"]
    assert "\n" not in one_line(text)


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" the", "␣the"),
        ("the ", "the␣"),
        ("a b", "a b"),
        ("\n", "↵"),
        ("\n\n", "↵↵"),
        ("", "∅"),
        ("  ", "␣␣"),
        ("\t", "⇥"),
    ],
)
def test_whitespace_of_a_token_is_shown(token: str, shown: str):
    assert visible_token(token) == shown


def test_marks_are_told_from_text():
    assert [(p.text, p.mark) for p in token_parts(" a\n")] == [("␣", True), ("a", False), ("↵", True)]
    # A token that is itself the sign for a space is text.
    assert [(p.text, p.mark) for p in token_parts("␣")] == [("␣", False)]


def test_shortening_says_so():
    assert shorten("abcdef", 4) == "abc…"
    assert shorten("abcd", 4) == "abcd"
