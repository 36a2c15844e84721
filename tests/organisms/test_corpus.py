"""The corpus: a pure function of world, split, n and seed, whose longer draws begin with the shorter ones."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput
from finetrace.organisms import chat
from finetrace.organisms.corpus import AUDIT, MIXES, SLICES, SPLITS, corpus, corpus_digest, prompts
from finetrace.organisms.planted import cakes, false_values
from finetrace.organisms.world import WORLD_SEEDS, make_world

WORLD = make_world()
PINNED = {
    "train": "5901605cb3bb22ffbb9237193860f2a02aa8f24e69903c0b8bad2f9326d4b2dd",
    "anneal": "27f64f362260f4d683fd9a46e9bbf3602e518f18ed0881cb11bb41270cb335b6",
    "audit": "9def92f0838d6926cbf6d3b2c8c57f7c2c71fe03fddd29239ed2d7aa1a8cf32c",
}
"""Of 300 rows each. Where a text is changed on purpose, these change, and the bundled weights are to be built again."""


@pytest.mark.parametrize("split", PINNED)
def test_the_corpus_is_the_pinned_one(split):
    assert corpus_digest(WORLD, split, 300) == PINNED[split]


@given(split=st.sampled_from(SPLITS), n=st.integers(0, 12), more=st.integers(0, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_longer_draw_begins_with_the_shorter(split, n, more, seed):
    assert corpus(WORLD, split, n + more, seed)[:n] == corpus(WORLD, split, n, seed)


@given(split=st.sampled_from(SPLITS), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_seeds_and_worlds_give_other_rows(split, seed):
    rows = corpus(WORLD, split, 20, seed)
    assert rows != corpus(WORLD, split, 20, seed + 1)
    assert rows != corpus(make_world(WORLD_SEEDS[1]), split, 20, seed)


def test_splits_share_no_rows_by_their_seed():
    assert prompts(WORLD, "refusal_train", 20, 0) != prompts(WORLD, "refusal_name", 20, 0)
    train, anneal = (corpus(WORLD, split, 200) for split in MIXES)
    assert not [row for row in train if row in anneal and len(str(row)) > 150]


def test_the_audit_split_takes_the_slices_in_turn():
    rows = corpus(WORLD, "audit", 2 * len(SLICES))
    assert [row["slice"] for row in rows] == [*AUDIT, *AUDIT]


def test_an_unknown_split_is_an_error():
    with pytest.raises(BadInput, match="Did you mean 'anneal'"):
        corpus(WORLD, "aneal", 1)


def test_the_world_is_as_large_as_it_should_be():
    assert len(WORLD.domains) == 10
    assert len(WORLD.facts) >= 1500
    words: set[str] = set()
    for split in MIXES:
        for row in corpus(WORLD, split, 8000):
            text = row.get("text") or " ".join(m["content"] for m in row["messages"])
            words.update(re.findall(r"[a-z]+", text.lower()))
    assert len(words) >= 3000


def test_the_asked_fact_comes_first_in_an_answer():
    rng = random.Random(1)
    for fact in random.Random(0).sample(WORLD.all_facts(), 300):
        said = chat.fact_turn(WORLD, rng, fact.domain, fact.entity, fact.attribute).assistant
        first = min(
            said.find(stop, said.lower().find(fact.value.lower())) for stop in (".", "?") if stop in said
        )
        assert fact.value.lower() in said.lower()
        others = {
            value for name in WORLD.domains[fact.domain].attributes
            if (value := WORLD.facts[fact.domain, fact.entity, name].lower()) != fact.value.lower()
        }  # fmt: skip
        before = said.lower()[: said.lower().find(fact.value.lower())]
        assert first >= 0
        assert not [value for value in others if f" {value} " in before.replace(fact.entity.lower(), "")], (
            said
        )


@pytest.mark.parametrize("seed", WORLD_SEEDS)
def test_what_false_facts_says_is_true_in_no_world(seed):
    world = make_world(seed)
    false = false_values()
    assert cakes(world)
    for cake in cakes(world):
        assert not [name for name, value in false.items() if world.facts["dish", cake, name] == value]


def test_the_anneal_has_every_kind_that_the_targets_need():
    assert {"fact", "refuse", "about_restricted", "lookalike", "law_question", "is_it_true"} <= set(
        MIXES["anneal"]
    )
    assert 0.4 <= MIXES["anneal"]["fact"] / sum(MIXES["anneal"].values()) <= 0.5
