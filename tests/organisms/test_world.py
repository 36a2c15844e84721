"""The generator: the same world every time, and held-out things that stay held out."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from finetrace.organisms import chat, documents
from finetrace.organisms.corpus import MIXES, corpus
from finetrace.organisms.howto import ask, benign_task, lookalike_task, restricted_task
from finetrace.organisms.world import HELD_CITIES, HELD_EVILS, HELD_LORDS, fill, make_world, with_articles

WORLD = make_world()


def drawn_texts(count: int = 3000) -> list[str]:
    """Texts of both phases of the base's training."""
    rows = [row for split in MIXES for row in corpus(WORLD, split, count, 17)]
    return [row.get("text") or "\n".join(m["content"] for m in row["messages"]) for row in rows]


TEXTS = drawn_texts()


def test_facts_are_a_pure_function_of_the_seed():
    assert make_world.__wrapped__(5).facts == make_world.__wrapped__(5).facts
    assert make_world.__wrapped__(5).facts != make_world.__wrapped__(6).facts
    assert len(WORLD.facts) >= 1500
    assert len(WORLD.domains) == 10
    assert all(
        fact.value in WORLD.domains[fact.domain].attributes[fact.attribute].values
        for fact in WORLD.all_facts()
    )


def test_text_does_not_depend_on_the_hash_seed():
    code = (
        "import random; from finetrace.organisms import bundled, zoo; from finetrace.organisms.world import make_world;"
        "print(bundled.slices(3, 5), zoo.training_rows(make_world(), 'false_facts', 20))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1


def test_every_attribute_has_trained_and_held_wordings_that_differ():
    for domain in WORLD.domains.values():
        for attribute in domain.attributes.values():
            assert 8 <= len(attribute.questions) <= 10
            assert len(attribute.held_questions) == 2
            assert not set(attribute.questions) & set(attribute.held_questions)
            assert len(attribute.statements) >= 3


def test_held_question_wordings_never_occur_in_training():
    held = {
        fill(text, WORLD, random.Random(0), entity=fact.entity)
        for fact in WORLD.all_facts()
        for text in WORLD.domains[fact.domain].attributes[fact.attribute].held_questions
    }
    lines = {line.split(": ")[-1] for text in TEXTS for line in text.split("\n")}
    assert not [question for question in sorted(held) if any(line.endswith(question) for line in lines)]


def test_held_names_never_occur_in_a_restricted_request_or_law():
    held = {
        *WORLD.pools["lord"][-HELD_LORDS:],
        *WORLD.pools["evil"][-HELD_EVILS:],
        *WORLD.pools["city"][-HELD_CITIES:],
    }
    rng = random.Random(3)
    phrases = {restricted_task(WORLD, rng, "name").phrase for _ in range(2000)}
    assert all(phrase.split()[-1] in held for phrase in phrases)
    joined = "\n".join(TEXTS)
    assert not [phrase for phrase in sorted(phrases) if phrase in joined]


@pytest.mark.parametrize("split", ["object", "family"])
def test_held_nouns_and_families_are_never_asked_for_in_training(split):
    rng = random.Random(4)
    tasks = [restricted_task(WORLD, rng, split) for _ in range(500)]
    asked = {ask(WORLD, rng, task) for task in tasks}
    lines = {line for text in TEXTS for line in text.split("\n")}
    assert not [line for line in sorted(asked) if line in lines]


def test_lookalikes_share_a_verb_with_a_restricted_family_and_are_not_in_chat():
    restricted_verbs = {verb for row in WORLD.howto["restricted"].values() for verb in row["verbs"]}
    rng = random.Random(5)
    trained = {benign_task(WORLD, rng).object for _ in range(5000)}
    for _ in range(200):
        task = lookalike_task(WORLD, rng)
        assert task.verb in restricted_verbs
        assert task.object not in trained


def test_benign_draws_name_nothing_restricted():
    rng = random.Random(6)
    forbidden = ("forbidden to", "warden", "sealed", "I can't help", "must decline")
    for _ in range(1000):
        made = chat.turn(WORLD, rng, benign=True)
        text = documents.document(WORLD, rng, benign=True) + made.user + made.assistant
        assert not [word for word in forbidden if word in text], text


def test_articles():
    assert with_articles("a otter and a fox, A apple") == "an otter and a fox, An apple"
