"""What `kl` finds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.data import ROLES
from finetrace.engine import Subject
from finetrace.methods.kl.passages import Passage
from finetrace.stats import ratio_estimate

NATS = "nats/token"
KEYS = ("kl_mean", "reverse_kl_mean", "js_mean", "delta_nll_mean")


@dataclass(frozen=True)
class Positions:
    """Mean KL(tuned || base) at leading positions of one slice. mean is 0 where count is 0: read it only where count > 0."""

    mean: np.ndarray
    count: np.ndarray


@dataclass(frozen=True)
class Result:
    """KL figures in nats per token, token-weighted over all kept positions (position 0 included, padding and the last
    token of each text excluded).

    numbers: all slices together. slices: slice -> key -> estimate. roles: slice -> role -> kl_mean. positions: slice ->
    means by position. histogram: slice -> counts of token KL by decade, below 1e-12, ..., above 1e2. texts: one row a
    text: corpus row, slice, tokens, and its own means. passages: the most changed, largest mean first within a slice.
    unscored: slice -> positions whose figures were not finite (overflow in a low precision); they are in no mean.
    """

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    roles: dict[str, dict[str, Estimate]]
    positions: dict[str, Positions]
    histogram: dict[str, np.ndarray]
    texts: Columns
    passages: tuple[Passage, ...]
    unscored: dict[str, int]


def summarise(
    subject: Subject,
    table: dict[str, np.ndarray],
    bins: dict[str, np.ndarray],
    passages: tuple[Passage, ...],
) -> Result:
    """table: key, row, slice [text]; sums [text, role, quantity]; counts [text, role]. bins: position_sums,
    position_counts [slice, position], histogram [slice, bin], unscored [slice]."""
    order = np.lexsort(
        (table["row"], table["key"].view(np.uint64))
    )  # by content: the corpus order moves nothing
    table = {name: column[order] for name, column in table.items()}
    everywhere = np.ones(len(order), bool)
    sums, counts = bins["position_sums"], bins["position_counts"]
    per_slice = {name: table["slice"] == i for i, name in enumerate(subject.slices)}
    return Result(
        numbers=_estimates(table, everywhere, subject.seed),
        slices={name: _estimates(table, mask, subject.seed) for name, mask in per_slice.items()},
        roles={name: _by_role(table, mask, subject.seed) for name, mask in per_slice.items()},
        positions={
            name: Positions(sums[i] / np.maximum(counts[i], 1), counts[i])
            for i, name in enumerate(subject.slices)
        },
        histogram={name: bins["histogram"][i] for i, name in enumerate(subject.slices)},
        texts=_texts(subject, table),
        passages=passages,
        unscored={name: int(bins["unscored"][i]) for i, name in enumerate(subject.slices)},
    )


def _estimates(table: dict[str, np.ndarray], mask: np.ndarray, seed: int) -> dict[str, Estimate]:
    counts = table["counts"][mask].sum(1)
    sums = table["sums"][mask].sum(1)
    keys = table["key"][mask].view(np.uint64)
    return {
        key: ratio_estimate(
            sums[:, q], counts, keys, unit=NATS, seed=seed, nonnegative=key != "delta_nll_mean"
        )
        for q, key in enumerate(KEYS)
    }


def _by_role(table: dict[str, np.ndarray], mask: np.ndarray, seed: int) -> dict[str, Estimate]:
    keys = table["key"][mask].view(np.uint64)
    found = {}
    for role, name in enumerate(ROLES):
        counts, sums = table["counts"][mask][:, role], table["sums"][mask][:, role, 0]
        if counts.any():
            found[name] = ratio_estimate(sums, counts, keys, unit=NATS, seed=seed, nonnegative=True)
    return found


def _texts(subject: Subject, table: dict[str, np.ndarray]) -> Columns:
    order = np.argsort(table["row"], kind="stable")
    counts = table["counts"][order].sum(1)
    means = table["sums"][order].sum(1) / np.maximum(counts, 1)[:, None]
    return Columns(
        {
            "row": table["row"][order],
            "slice": [subject.slices[i] for i in table["slice"][order]],
            "tokens": counts,
            **{key: means[:, q] for q, key in enumerate(KEYS)},
        }
    )
