"""What was planted is found: directions by SAEs and crosscoders, and whose they are; Delta beside plain on a narrow change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.dictionaries.planted import D, Planted, f1, matches, planted, shuffled

from finetrace.dictionaries.training import Trained, Training, train

HELD = 1000
# Rows of the planted kind are few, and steps with them: what is dead is found out early and taught more.
PLANTED = Training(
    latents=96, k=3, batch=256, steps=400, lr=0.02, aux_alpha=0.25, dead_after=2000, validate=1
)


def trained(truth: Planted, **settings: Any) -> Trained:
    models = truth.rows.shape[1]
    training = replace(PLANTED, **settings)
    return train(shuffled(truth.rows[HELD:]), (models, D), training, truth.rows[:HELD])


def test_training_does_not_begin_with_what_was_planted():
    truth = planted(1, HELD + 200)
    begun = trained(truth, steps=1, lr=1e-30, latents=128, batch=64, sample=2)
    assert float((matches(begun.dictionary, truth.directions)[0] > 0.9).float().mean()) == 0


@pytest.mark.parametrize("settings", [{}, {"kind": "relu", "l1": 1.0}], ids=["batch_topk", "relu"])
def test_an_sae_finds_the_planted_directions(settings: dict):
    truth = planted(1, 5000)
    found = trained(truth, **settings)
    cosine, _ = matches(found.dictionary, truth.directions)
    assert float((cosine > 0.9).float().mean()) >= 0.9
    share = found.checked[-1].fit.unexplained[0]
    assert share.value is not None
    assert share.value < 0.15
    assert found.dictionary.decoder.norm(dim=2).sub(1).abs().max() < 1e-5


def test_a_crosscoder_finds_the_planted_directions_and_whose_they_are():
    truth = planted(2, 5000)
    found = trained(truth)
    cosine, _ = matches(found.dictionary, truth.directions)
    assert float((cosine > 0.9).float().mean()) >= 0.9
    for tag in ("tuned-only", "base-only", "shared"):
        assert f1(found.dictionary, ~found.dead, truth, tag) >= 0.9
    held = found.checked[-1].fit
    assert held.n == HELD
    assert held.l0 == pytest.approx(3, abs=0.5)


def test_on_a_narrow_change_the_delta_form_tags_more_than_a_plain_crosscoder():
    """The tuned model's own features are a third as frequent as others and half as large: side by side, the same rows."""
    truth = planted(2, 6000, rarer=0.3, weaker=0.5)
    score, unexplained = {}, {}
    for delta in (0.0, 4.0):
        found = trained(truth, k=4, steps=500, delta=delta)
        score[delta] = f1(found.dictionary, ~found.dead, truth, "tuned-only")
        difference = found.checked[-1].fit.difference
        assert difference is not None
        assert difference.value is not None
        unexplained[delta] = difference.value
    assert score[4.0] > max(0.8, score[0.0] + 0.1)
    assert unexplained[4.0] < 0.8 * unexplained[0.0]
