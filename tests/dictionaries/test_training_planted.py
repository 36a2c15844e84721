"""What was planted is found: directions by SAEs and crosscoders, and whose they are; Delta beside plain on a narrow change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.dictionaries.planted import D, Planted, f1, matches, planted, shuffled

from finetrace.dictionaries.training import Trained, Training, train

HELD = 1000


def trained(truth: Planted, **settings: Any) -> Trained:
    models = truth.rows.shape[1]
    training = replace(Training(latents=96, k=4, batch=512, steps=400), **settings)
    return train(shuffled(truth.rows[HELD:]), (models, D), training, truth.rows[:HELD])


@pytest.mark.parametrize("settings", [{}, {"kind": "relu", "l1": 0.3}], ids=["batch_topk", "relu"])
def test_an_sae_finds_the_planted_directions(settings: dict):
    truth = planted(1, 5000)
    found = trained(truth, **settings)
    cosine, _ = matches(found.dictionary, truth.directions)
    assert float((cosine > 0.9).float().mean()) >= 0.9
    share = found.checked[-1].fit.unexplained[0]
    assert share.value is not None
    assert share.value < 0.2
    assert found.dictionary.decoder.norm(dim=2).sub(1).abs().max() < 1e-5


def test_a_crosscoder_finds_the_planted_directions_and_whose_they_are():
    truth = planted(2, 5000)
    found = trained(truth, lr=0.01, steps=600)
    cosine, _ = matches(found.dictionary, truth.directions)
    assert float((cosine > 0.9).float().mean()) >= 0.9
    for tag in ("tuned-only", "base-only", "shared"):
        assert f1(found.dictionary, ~found.dead, truth, tag) >= 0.9
    held = found.checked[-1].fit
    assert held.n == HELD
    assert held.l0 == pytest.approx(4, abs=0.5)


def test_on_a_narrow_change_the_delta_form_tags_what_a_plain_crosscoder_misses():
    """A tenth as often as other features, so few rows say whose they are."""
    truth = planted(2, 9000, rarer=0.1)
    score, unexplained = {}, {}
    for delta in (0.0, 4.0):
        found = trained(truth, lr=0.005, steps=600, delta=delta)
        score[delta] = f1(found.dictionary, ~found.dead, truth, "tuned-only")
        difference = found.checked[-1].fit.difference
        assert difference is not None
        assert difference.value is not None
        unexplained[delta] = difference.value
    assert score[4.0] >= 0.9
    assert score[0.0] < 0.7
    assert unexplained[4.0] < 0.6 * unexplained[0.0]
