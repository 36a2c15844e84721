"""How large a training is, of what was asked for and the tokens there are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetrace.core.dictionaries import Course, course
from finetrace.methods.sae_difference import Config


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (10, Course(10, 10, 20)),  # no more latents than tokens, all of them a step, each twice
        (100, Course(64, 64, 200)),  # a small corpus in steps of 64 all the same
        (8000, Course(64, 500, 1000)),  # in 16 steps at least, and 1,000 in all
        (10**6, Course(64, 1024, 3906)),  # as asked for: four readings
        (10**8, Course(64, 1024, 20000)),
    ],
)
def test_a_training_is_what_was_asked_for_as_far_as_there_are_tokens(rows: int, expected: Course):
    assert course(Config(), rows, 32) == expected


def test_what_is_named_is_taken():
    assert course(replace(Config(), latents=9, steps=7, batch=50), 10**6, 32) == Course(9, 50, 7)
    assert course(replace(Config(), expansion=4, epochs=8.0), 10**6, 32) == Course(128, 1024, 7812)
    assert course(replace(Config(), latents=9), 1, 32).latents == 2


def test_its_products_are_five_for_each_token_latent_and_number():
    assert Course(latents=7, batch=11, steps=13).products(2, 3) == 5 * 2 * 3 * 7 * 11 * 13
