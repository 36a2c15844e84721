"""The case `snip`: both arms give the same scores, and the products are as many as it says. No times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.case import PRESETS
from benchmarks.counters import counted

from benchmarks import models, snip

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models")
    models.make(where, SMOKE, torch.float32)
    return where


def test_the_peers_sweep_gives_our_scores(base: Path):
    model, some = models.plain(base / "base", torch.float32), snip.samples(SMOKE)
    theirs, ours = snip.their_scores(model, some), snip.our_scores(model, some, 3)
    assert theirs.keys() == ours.keys()
    for name, scores in ours.items():
        torch.testing.assert_close(scores, theirs[name].detach(), rtol=1e-3, atol=1e-6 * float(scores.max()))


def test_products_are_about_as_counted_on_paper(base: Path):
    arms = snip.case(SMOKE, torch.float32, base).arms
    for name in ("peer", "ours", "floor"):
        assert counted(arms[name].open()).flop == pytest.approx(arms[name].flop, rel=0.15)


def test_it_is_judged_by_layers_and_by_overlap():
    rows = [{"peer": 1.0, "overlap": 0.9}, {"ours": 1.0, "overlap": 0.99}]
    figures = {"arms": {"ours": {"ratio": {"median": 2.0}}}, "accuracy": rows}
    found = snip.goal(figures, SMOKE)
    assert (found["measured"], found["reached"], found["reached_accuracy"]) == (1.0, True, True)


def test_models_of_other_depths_are_told(base: Path):
    model = models.plain(base / "base", torch.bfloat16)
    found = snip.by_layers(model, snip.samples(SMOKE)[:2], 2, depths=(1, 3))
    assert found.keys() == {"1", "3"}
    assert found["3"].keys() == {"ratio", "of_layers"}
