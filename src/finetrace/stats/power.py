"""What a comparison could have seen, and how far a clean record goes."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from scipy import optimize, stats

from finetrace.core.errors import BadInput
from finetrace.stats.intervals import check_level

_QUADRATURE = 400


def false_positive_bound(failures: int, trials: int, level: float = 0.95) -> float:
    """Upper Clopper-Pearson bound, in [0, 1], of the rate behind `failures` of `trials`; 1 for no trials.

    One-sided: 0 of 20 bounds a false-positive rate by 13.9%, 0 of 60 by 4.9%. Source: Clopper, Pearson 1934.
    """
    check_level(level)
    if not 0 <= failures <= trials:
        raise BadInput(f"There cannot be {failures} failures in {trials} trials.")
    if failures == trials:
        return 1.0
    return float(stats.beta.ppf(level, failures + 1, trials - failures))


def detection_power(
    ratio: float,
    null_sd: float,
    k: int,
    *,
    margin: float = 2.0,
    alpha: float = 0.05,
    tests: int = 1,
    sampling_se: float = 0.0,
) -> float:
    """Chance in [0, 1] that `change_verdict` says beyond-nulls of a pair `ratio` times its typical null.

    `null_sd` is the sd of the log of the nulls, `k` how many there are, `tests` the size of the family,
    `sampling_se` the standard error of the log ratio over texts (0: read exactly). Natural logs. Integrated
    over the spread that k nulls would happen to show.
    """
    if k < 3 or not (ratio > 0 and null_sd > 0 and margin >= 1 and tests >= 1 and sampling_se >= 0):
        raise BadInput(
            "Power needs k >= 3 nulls, positive ratio and null_sd, margin >= 1, tests >= 1 and sampling_se >= 0."
        )
    check_level(alpha)
    widen = math.sqrt(1 + 1 / k)
    levels = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE
    seen_sd = null_sd * np.sqrt(stats.chi2.ppf(levels, k - 1) / (k - 1))
    bound = np.maximum(math.log(margin), stats.t.ppf(1 - alpha / tests, k - 1) * seen_sd * widen)
    bound += float(stats.norm.ppf(1 - alpha / 2)) * sampling_se
    spread = math.hypot(null_sd * widen, sampling_se)
    return float(np.mean(stats.norm.cdf((math.log(ratio) - bound) / spread)))


def minimal_detectable_ratio(
    null_sd: float,
    k: int,
    *,
    margin: float = 2.0,
    alpha: float = 0.05,
    tests: int = 1,
    power: float = 0.8,
    sampling_se: float = 0.0,
) -> float:
    """The smallest true ratio (pair over typical null) called beyond-nulls with chance `power`.

    Arguments as for `detection_power`. With few nulls it is large: say so before anybody trains.
    """
    check_level(power)

    def lacking(log_ratio: float) -> float:
        found = detection_power(
            math.exp(log_ratio), null_sd, k, margin=margin, alpha=alpha, tests=tests, sampling_se=sampling_se
        )
        return found - power

    high = 1.0
    while lacking(high) < 0:
        high *= 2
        if high > 500:
            raise BadInput(f"No ratio can be seen against {k} nulls that spread by {null_sd} in the log.")
    low = 0.0 if lacking(0.0) < 0 else -500.0
    return math.exp(cast("float", optimize.brentq(lacking, low, high, xtol=1e-6)))
