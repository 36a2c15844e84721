"""Seed 003's own figures and rule, as it computed them, to be shown beside ours and labelled: not to be decided by.

They pool weights that no adapter touches with those that one does, divide by single weights, and compare a difference of
the order of 1e-5 with 0.01, so that the rule could not come out otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetrace.stats.bootstrap import FloatArray

TINY_WEIGHT = 1e-8
RULE = 0.01


@dataclass(frozen=True)
class Seed003Summary:
    """A group's |change| and |change| / |weight|, over all its entries, adapted or not. n: entries."""

    n: int
    mean: float
    sd: float
    median: float
    upper_quartile: float
    largest: float
    relative_mean: float
    relative_sd: float
    relative_largest: float


def seed003_summary(change: FloatArray, weight: FloatArray) -> Seed003Summary | None:
    """change, weight: [entry]. A relative change is 0 where |weight| < 1e-8. None for an empty group."""
    size, base = np.abs(np.asarray(change, np.float64)), np.abs(np.asarray(weight, np.float64))
    if not len(size):
        return None
    relative = np.divide(size, base, out=np.zeros_like(size), where=base >= TINY_WEIGHT)
    return Seed003Summary(
        n=len(size),
        mean=float(size.mean()),
        sd=float(size.std()),
        median=float(np.median(size)),
        upper_quartile=float(np.quantile(size, 0.75)),
        largest=float(size.max()),
        relative_mean=float(relative.mean()),
        relative_sd=float(relative.std()),
        relative_largest=float(relative.max()),
    )


def seed003_cohens_d(mean: float, sd: float, baseline_mean: float, baseline_sd: float) -> float | None:
    """(mean - baseline mean) / sqrt of the mean variance, from summaries alone; None where neither group varies."""
    spread = math.sqrt((sd**2 + baseline_sd**2) / 2)
    return (mean - baseline_mean) / spread if spread > 0 else None


def seed003_rule(safety: Seed003Summary, random: Seed003Summary) -> str:
    """ "H1" if the safety group's mean |change| is above the random group's by more than 0.01, else "H2"."""
    return "H1" if safety.mean - random.mean > RULE else "H2"
