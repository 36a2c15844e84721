"""Intervals, paired tests, corrections, power and verdicts: numpy and scipy only.

A name is imported from its file when it is first asked for, so that reading one word loads no scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetrace.stats.bootstrap import poisson_weights, ratio_replicates, weighted_sums
    from finetrace.stats.contrast import Pooled, as_ratio, log_rms_ratio, pooled, superiority
    from finetrace.stats.equivalence import (
        GROUP_WORDS,
        GroupVerdict,
        GroupWord,
        Hypothesis,
        fragile,
        group_verdict,
        similar,
    )
    from finetrace.stats.estimate import ratio_estimate
    from finetrace.stats.intervals import Interval, mean_interval, wilson
    from finetrace.stats.multiple import benjamini_hochberg, holm
    from finetrace.stats.paired import (
        Difference,
        Equivalence,
        mcnemar_exact,
        paired_difference,
        replicate_difference,
        sign_flip,
        tost,
    )
    from finetrace.stats.permutation import swap_pairs
    from finetrace.stats.power import detection_power, false_positive_bound, minimal_detectable_ratio
    from finetrace.stats.reliability import noise_ceiling
    from finetrace.stats.seed003 import Seed003Summary, seed003_cohens_d, seed003_rule, seed003_summary
    from finetrace.stats.verdict import (
        CHANGE_WORDS,
        SAFETY_WORDS,
        ChangeVerdict,
        ChangeWord,
        Measured,
        SafetyWord,
        change_verdict,
        change_verdicts,
        overall,
        safety_verdict,
    )

_HOMES = {
    "bootstrap": ("poisson_weights", "ratio_replicates", "weighted_sums"),
    "contrast": ("Pooled", "as_ratio", "log_rms_ratio", "pooled", "superiority"),
    "equivalence": (
        "GROUP_WORDS",
        "GroupVerdict",
        "GroupWord",
        "Hypothesis",
        "fragile",
        "group_verdict",
        "similar",
    ),
    "estimate": ("ratio_estimate",),
    "intervals": ("Interval", "mean_interval", "wilson"),
    "multiple": ("benjamini_hochberg", "holm"),
    "paired": (
        "Difference",
        "Equivalence",
        "mcnemar_exact",
        "paired_difference",
        "replicate_difference",
        "sign_flip",
        "tost",
    ),
    "permutation": ("swap_pairs",),
    "power": ("detection_power", "false_positive_bound", "minimal_detectable_ratio"),
    "reliability": ("noise_ceiling",),
    "seed003": ("Seed003Summary", "seed003_cohens_d", "seed003_rule", "seed003_summary"),
    "verdict": (
        "CHANGE_WORDS",
        "SAFETY_WORDS",
        "ChangeVerdict",
        "ChangeWord",
        "Measured",
        "SafetyWord",
        "change_verdict",
        "change_verdicts",
        "overall",
        "safety_verdict",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CHANGE_WORDS",
    "GROUP_WORDS",
    "SAFETY_WORDS",
    "ChangeVerdict",
    "ChangeWord",
    "Difference",
    "Equivalence",
    "GroupVerdict",
    "GroupWord",
    "Hypothesis",
    "Interval",
    "Measured",
    "Pooled",
    "SafetyWord",
    "Seed003Summary",
    "as_ratio",
    "benjamini_hochberg",
    "change_verdict",
    "change_verdicts",
    "detection_power",
    "false_positive_bound",
    "fragile",
    "group_verdict",
    "holm",
    "log_rms_ratio",
    "mcnemar_exact",
    "mean_interval",
    "minimal_detectable_ratio",
    "noise_ceiling",
    "overall",
    "paired_difference",
    "poisson_weights",
    "pooled",
    "ratio_estimate",
    "ratio_replicates",
    "replicate_difference",
    "safety_verdict",
    "seed003_cohens_d",
    "seed003_rule",
    "seed003_summary",
    "sign_flip",
    "similar",
    "superiority",
    "swap_pairs",
    "tost",
    "weighted_sums",
    "wilson",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
