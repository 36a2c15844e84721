"""The benchmark of PCA compares the same thing: both are exact, and the work is as counted. No times."""

from __future__ import annotations

import torch
from benchmarks.case import PRESETS
from benchmarks.counters import counted

from benchmarks import pca

SMOKE = PRESETS["smoke"]


def test_both_are_exact():
    (row,) = pca.accuracy(SMOKE)
    assert row["peer_variance"] < 1e-4
    assert row["ours_variance"] < 1e-5
    assert row["ours_angle"] < 1e-4
    arms = {name: {"ratio": {"median": 9.0}, "seconds": 1.0} for name in ("peer", "ours", "floor")}
    assert pca.goal({"arms": arms, "accuracy": [row]})["reached"]


def test_products_are_as_counted_on_paper():
    arms = pca.case(SMOKE, torch.float32).arms
    for name in ("ours", "floor"):
        assert counted(arms[name].open()).flop == arms[name].flop
