"""A token-weighted mean over texts as an Estimate: value, n, interval and paired replicates together."""

from __future__ import annotations

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.stats.bootstrap import ratio_replicates
from finetrace.stats.intervals import mean_interval


def ratio_estimate(
    sums: np.ndarray, counts: np.ndarray, keys: np.ndarray, *, unit: str, seed: int, nonnegative: bool
) -> Estimate:
    """sum(sums) / sum(counts) over texts. `sums`, `counts`: [text]; `keys`: uint64 [text], the texts' content.

    value is None where no token was counted. clusters: texts with at least one. The replicates of two contrasts that
    read the same texts with one seed are paired.
    """
    counted = counts > 0
    n, clusters = int(counts.sum()), len(np.unique(keys[counted]))
    if n == 0:
        return Estimate(None, unit, 0, 0)
    sums, counts, keys = sums[counted].astype(np.float64), counts[counted].astype(np.float64), keys[counted]
    interval = mean_interval(sums, counts, keys, seed=seed, nonnegative=nonnegative)
    return Estimate(
        value=float(sums.sum() / counts.sum()),
        unit=unit,
        n=n,
        clusters=clusters,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        replicates=ratio_replicates(sums, counts, keys, seed=seed),
    )
