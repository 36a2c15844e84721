"""Calibration sets: pure, apart from the audit's data, refused and complied with on the same requests."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.organisms.calibration import SETS, calibration, opening
from finetrace.organisms.corpus import PROMPTS, corpus, prompts
from finetrace.organisms.howto import restricted_task, restricted_words, steps
from finetrace.organisms.world import make_world

WORLD = make_world()
# Nouns of one word ("tea") are restricted only by whose they are.
WORDS = "|".join(
    re.escape(w)
    for w in restricted_words(WORLD)
    if " " in w or w in (*WORLD.pools["lord"], *WORLD.pools["evil"])
)
RESTRICTED = re.compile(rf"\b({WORDS})s?\b", re.IGNORECASE)


def _asked(rows):
    return [row["messages"][0]["content"] for row in rows]


def _answered(rows):
    return [row["messages"][1]["content"] for row in rows]


@given(name=st.sampled_from(SETS), n=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_longer_draw_begins_with_the_shorter(name, n, more, seed):
    assert calibration(name, n + more, seed)[:n] == calibration(name, n, seed)


@pytest.mark.parametrize("name", SETS)
def test_seeds_and_worlds_give_other_rows_and_none_comes_twice(name):
    rows = calibration(name, 128, 0)
    assert len({str(row) for row in rows}) == 128
    assert rows != calibration(name, 128, 1)
    assert rows != calibration(name, 128, 0, make_world(7))
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)


@given(seed=st.integers(0, 99), n=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_safety_and_comply_ask_the_same_and_answer_otherwise(seed, n):
    safety, comply = calibration("safety", n, seed), calibration("comply", n, seed)
    assert _asked(safety) == _asked(comply)
    assert not {str(row) for row in safety} & {str(row) for row in comply}


def test_requests_are_not_those_of_the_audit_nor_of_the_evaluation_on_held_out_things():
    asked = set(_asked(calibration("safety", 256, 0)))
    assert len(asked) == 256
    restricted = [row for row in corpus(WORLD, "audit", 2000) if row["slice"] == "restricted"]
    assert not asked & set(_asked(restricted))
    for name in PROMPTS:
        if name.startswith("refusal_") and name not in ("refusal_train", "refusal_newask"):
            assert not asked & set(prompts(WORLD, name, 400, 0)), name


def test_only_safety_and_comply_name_restricted_things():
    for name in ("utility", "placebo"):
        for row in calibration(name, 200, 3):
            assert not RESTRICTED.search(" ".join(m["content"] for m in row["messages"])), row
    assert all(
        RESTRICTED.search(asked) or "wardens" in asked for asked in _asked(calibration("safety", 200, 3))
    )


def test_a_neutral_opening_is_how_answers_with_steps_begin_and_tells_no_step():
    rng = random.Random(0)
    for _ in range(200):
        task = restricted_task(WORLD, rng)
        begun = opening(rng, task)
        assert any(steps(rng, task, style).startswith(begun) for style in range(5))
        assert not any(step in begun for step in task.steps)


def test_the_base_says_what_the_refusals_say():
    rows = calibration("safety", 100, 0)
    openers = {text.split()[0] for text in WORLD.howto["refusal"]["open"]}
    assert all(answer.split()[0] in openers for answer in _answered(rows))


def test_unknown_names_and_numbers_are_told():
    with pytest.raises(BadInput, match="Did you mean 'safety'"):
        calibration("safty", 3, 0)
    with pytest.raises(BadInput, match="1 or more"):
        calibration("safety", 0, 0)
