"""Labels of latents: written from what fires, scored on what was held out, against another's label, and never by the text."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.judges.mocks import CANARY, Mock, verdict_line
from tests.judges.payloads import _delimiters, _grades, _pleas, _turns

from finetrace.core.errors import BadInput
from finetrace.dictionaries.labels import Detection, Label, Labeller, Passage, Shown, at_most
from finetrace.judges.cache import Replies
from finetrace.judges.cost import Price

WORDS = ("harbour", "lantern", "violin", "granite")
_FENCED = re.compile(r"\[(\w+) ([0-9a-f]{24})\]\n((?:\| .*\n)*)\[end of \1 \2\]")


def passage(number: int, word: str | None = None, *, private: bool = False, tail: str = "") -> Passage:
    tokens = [f" number{number}", " is", " here", f" {word}" if word else " nothing", tail]
    return Passage(tuple(tokens), tuple(float(3 if token == f" {word}" else 0) for token in tokens), private)


def shown(word: str, start: int, held_out: int = 12, **how: Any) -> Shown:
    """Fires on one word: twelve passages to write from, as many of either kind held out."""
    strong = [passage(start + i, word, **how) for i in range(12)]
    rest = [passage(start + 100 + i, word if i % 2 else None, **how) for i in range(2 * held_out)]
    return Shown(strong, rest)


def latents(*words: str, **how: Any) -> dict[int, Shown]:
    return {10 * i: shown(word, 1000 * i, **how) for i, word in enumerate(words or WORDS)}


def quoted(prompt: str) -> list[tuple[str, str]]:
    """What stands in the fences: (label, text)."""
    return [(label, text.replace("| ", "")) for label, _, text in _FENCED.findall(prompt)]


def honest(prompt: str) -> str:
    """Names the word that is marked everywhere; finds a description that stands in the passage."""
    parts = quoted(prompt)
    if parts[0][0] == "description":
        return verdict_line(prompt, verdict="yes" if parts[0][1].strip() in parts[1][1] else "no")
    marked = [set(re.findall(r"« ?(\w+)»", text)) for _, text in parts]
    return verdict_line(prompt, label=min(set.intersection(*marked)))


def test_a_label_that_finds_its_passages_holds():
    mock = Mock(honest)
    found = Labeller(mock).label(latents())
    assert [label.text for label in found.labels if label.holds] == list(WORDS)
    assert [label.latent for label in found.labels] == [0, 10, 20, 30]
    first = found.labels[0]
    assert first.score is not None and first.control is not None and first.score.interval is not None  # noqa: PT018
    assert (first.score.value, first.score.n, first.score.unscored) == (1.0, 20, 0)
    assert first.score.interval.low > 0.6
    # Another's label stands in none of these: it is right about every silent passage and about nothing else.
    assert (first.control.value, first.gain) == (0.5, 0.5)
    assert first.q is not None
    assert first.q < 0.001
    # Four written; 20 passages each, under either label.
    assert found.spent.asked == len(mock.heard) == 4 + 4 * 20 * 2
    assert found.spent.money(Price(1e6, 0.0)) == found.spent.tokens_in > 0


def test_replies_are_kept_by_content(tmp_path: Path):
    some = latents("harbour", "lantern")
    first = Labeller(Mock(honest), held_out=10, replies=Replies(tmp_path)).label(some)
    silent = Mock(lambda prompt: None)
    again = Labeller(silent, held_out=10, replies=Replies(tmp_path)).label(some)
    assert (again.labels, silent.heard) == (first.labels, [])
    assert (again.spent.asked, again.spent.kept) == (0, first.spent.asked)


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        (lambda label, text: "yes", "no better than chance"),
        (lambda label, text: "no", "no better than chance"),
        (lambda label, text: "yes" if "nothing" not in text else "no", "another latent's label"),
    ],
)
def test_a_label_that_says_nothing_of_its_latent_is_not_shown(verdict: Any, why: str):
    def answer(prompt: str) -> str:
        parts = quoted(prompt)
        if parts[0][0] == "description":
            return verdict_line(prompt, verdict=verdict(parts[0][1], parts[1][1]))
        return honest(prompt)

    for label in Labeller(Mock(answer)).label(latents()).labels:
        assert label.text in WORDS
        assert not label.holds
        assert why in label.why


def test_labels_of_a_judge_that_guesses_do_not_hold():
    def guesses(prompt: str) -> str:
        parts = quoted(prompt)
        if parts[0][0] == "description":
            code = verdict_line(prompt).split('"')[3]
            return verdict_line(prompt, verdict="yes" if int(code[:8], 16) % 2 else "no")
        return honest(prompt)

    words = [f"word{i}x" for i in range(40)]
    labels = Labeller(Mock(guesses)).label(latents(*words, held_out=10)).labels
    values = [label.score.value for label in labels if label.score]
    assert sum(label.holds for label in labels) == 0
    assert 0.45 < sum(value for value in values if value is not None) / len(values) < 0.55


def test_private_passages_are_said_to_nobody():
    told: list[str] = []
    mock = Mock(honest)
    mixed = latents()
    hidden = [passage(7, "harbour", private=True, tail=" secret"), passage(8, private=True, tail=" secret")]
    mixed[0] = Shown([hidden[0], *mixed[0].strong], [*hidden, *mixed[0].held_out])
    found = Labeller(mock, tell=told.append).label(mixed)
    assert found.private == 3
    assert not any("secret" in ask.messages[0].content for ask in mock.heard)
    assert any("3 private passages" in line for line in told)
    alone = Mock(honest)
    nothing = Labeller(alone).label({1: shown("harbour", 0, private=True)})
    assert alone.heard == []
    assert nothing.labels == (Label(1, None, why="none was written"),)


PAYLOADS = [*_delimiters(), *_grades(), *_pleas(), *_turns()]


def test_no_text_of_a_passage_or_a_label_stands_where_instructions_do():
    """A passage may ask for a verdict, and a label that was dictated by one too: both stay inside their fences."""
    mock = Mock(
        lambda prompt: verdict_line(prompt, label=CANARY) if "[description" not in prompt else honest(prompt)
    )
    for start in range(0, len(PAYLOADS), 20):
        some = PAYLOADS[start : start + 20]
        strong = [passage(i, "harbour", tail=text) for i, text in enumerate(some)]
        held = [passage(100 + i, "harbour" if i % 2 else None, tail=text) for i, text in enumerate(some)]
        Labeller(mock, strong=20, held_out=20).label({1: Shown(strong, held)})
    assert len(mock.heard) > len(PAYLOADS) // 2
    for ask in mock.heard:
        prompt = ask.messages[0].content
        assert CANARY in prompt
        assert CANARY not in _FENCED.sub("", prompt)
        assert not re.search(r"<\|[^|>\n]*\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>", prompt)


@pytest.mark.parametrize(
    "said", ['{"code": "x", "label": "harbour"}', "harbour", "", "LONG", "EMPTY", "NUMBER"]
)
def test_a_label_that_cannot_be_read_is_none(said: str):
    made = {"LONG": "a" * 161, "EMPTY": " ", "NUMBER": 3}

    def answer(prompt: str) -> str:
        return (
            json.dumps({"code": verdict_line(prompt).split('"')[3], "label": made[said]})
            if said in made
            else said
        )

    mock = Mock(answer)
    (label,) = Labeller(mock).label(latents("harbour")).labels
    assert (label.text, label.holds, label.why) == (None, False, "none was written")
    assert len(mock.heard) == 2


def test_verdicts_that_cannot_be_read_are_left_out_and_counted():
    def answer(prompt: str) -> str | tuple[str, bool]:
        unread = "[description" in prompt and re.search(r"number\d*[02468] ", prompt)
        return ("yes of course", True) if unread else honest(prompt)

    (label,) = Labeller(Mock(answer), held_out=48).label({1: shown("harbour", 0, held_out=24)}).labels
    assert label.score is not None
    # Every second passage is silent, and has an even number.
    assert (label.score.firing, label.score.silent, label.score.unscored) == (24, 0, 24)
    assert (label.score.value, label.score.interval, label.holds) == (None, None, False)
    assert "no verdict" in label.why


def test_one_latent_has_no_control_and_may_hold():
    (label,) = Labeller(Mock(honest)).label(latents("harbour")).labels
    assert (label.text, label.holds, label.control, label.gain) == ("harbour", True, None, None)


def test_a_label_is_not_scored_with_what_it_was_written_from_nor_with_too_few():
    strong = shown("harbour", 0).strong
    held = [*strong, *(passage(200 + i) for i in range(12))]
    (label,) = Labeller(Mock(honest)).label({1: Shown(strong, held)}).labels
    assert (label.text, label.score) == ("harbour", None)
    assert "fewer than 5 held-out passages" in label.why
    with pytest.raises(BadInput, match="at least 10"):
        Labeller(Mock(honest), held_out=9)
    with pytest.raises(BadInput, match="2 tokens and 1 values"):
        Passage(("a", "b"), (1.0,), False)


def test_the_order_is_the_seeds_and_tells_nothing():
    def order(seed: int) -> list[str]:
        mock = Mock(honest)
        Labeller(mock, seed=seed).label(latents())
        return [
            "yes" if "harbour" in quoted(ask.messages[0].content)[1][1] else "no" for ask in mock.heard[4:]
        ]

    first = order(1)
    assert first == order(1) != order(2)
    assert sum(a != b for a, b in pairwise(first)) > 5


def test_a_long_passage_is_cut_about_where_it_fires_and_a_dry_run_counts_the_same():
    def drawn(number: int, place: int | None) -> Passage:
        tokens = [" harbour" if i == place else f" t{number}x{i}" for i in range(300)]
        return Passage(tuple(tokens), tuple(float(i == place) for i in range(300)), False)

    long, silent = [drawn(i, 11 * i) for i in range(24)], [drawn(100 + i, None) for i in range(12)]
    mock = Mock(honest)
    some = {1: Shown(long[:12], [*long[12:], *silent])}
    labeller = Labeller(mock, tell=lambda line: None)
    cost = labeller.cost(some)
    (label,) = labeller.label(some).labels
    assert label.score is not None
    assert label.score.value == 1.0
    for ask in mock.heard[1:]:
        assert len(quoted(ask.messages[0].content)[1][1].split()) == 64
    assert all(len(ask.messages[0].content) < 12_000 for ask in mock.heard)
    assert (cost.asked, cost.estimated) == (1 + 2 * 20, True)
    written, scored = at_most(3)
    assert (written.asked, scored.asked, scored.estimated) == (3, 3 * 2 * 20, True)
    # Without passages to look at: tokens of four characters.
    assert 3 * cost.tokens_in == pytest.approx((written + scored).tokens_in, rel=0.5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_the_interval_holds_the_value_and_p_is_fishers(firing: int, silent: int, data: st.DataObject):
    found, left = data.draw(st.integers(0, firing)), data.draw(st.integers(0, silent))
    some = Detection(found, firing, left, silent, 0)
    assert some.value is not None and some.interval is not None and some.p is not None  # noqa: PT018
    assert 0 <= some.interval.low <= some.value <= some.interval.high <= 1
    table = [[found, firing - found], [silent - left, left]]
    assert some.p == pytest.approx(stats.fisher_exact(table, alternative="greater")[1], abs=1e-9)
    assert Detection(found, firing, 0, 0, 3).value is None
