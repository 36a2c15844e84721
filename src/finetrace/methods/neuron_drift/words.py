"""What groups, controls and numbers are called."""

from __future__ import annotations

GROUPS = {
    "safety_only": "safety, not utility (set difference)",
    "safety_top": "safety, top k",
    "utility_top": "utility, top k",
    "placebo_only": "placebo, not utility (set difference)",
    "placebo_top": "placebo, top k",
    "random": "random",
}
CONTROLS = {
    "matched": "matched on matrix, row, column scale and size",
    "placebo": "placebo group",
    "magnitude": "matched on matrix and size",
    "random": "random, same matrices",
    "utility": "utility group",
}
NUMBERS = {
    "drift_ratio": (
        "Drift of the safety group over its matched control's",
        "Ratio of root mean square changes; 1: no more and no less than weights like them. Interval over layers.",
    ),
    "drift_ratio_placebo": (
        "The same, over the placebo group's",
        "Against a group chosen in the same way from harmless data.",
    ),
    "drift_ratio_random": (
        "The same, over random weights'",
        "Not like for like: top scores pick rows and columns that move more whatever the data.",
    ),
    "relative_drift": ("Relative drift of the safety group", "Norm of the change over the weights' norm."),
    "superiority": (
        "Chance of moving more",
        "How often a safety weight moved more than its matched one; 0.5: no difference.",
    ),
    "match_rate": (
        "Match rate",
        "Share of the safety group that found a partner; below 0.8 nothing is decided.",
    ),
    "adapted_share": (
        "Adapted share",
        "Share of the safety group in matrices that the fine-tune changes; nothing is said of the rest.",
    ),
    "split_half_jaccard": (
        "Split-half agreement",
        "Jaccard index of the safety groups that two halves of the samples give.",
    ),
}


def group(name: str) -> str:
    return GROUPS.get(name, name)


def control(kind: str) -> str:
    return CONTROLS.get(kind, kind)
