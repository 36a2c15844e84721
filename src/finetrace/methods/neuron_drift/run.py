"""The method at its desk: groups from scores of the base, once an audit; then what one fine-tune did to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from finetrace.core.estimate import Estimate
from finetrace.engine.desk import Desk
from finetrace.methods.neuron_drift import SETS, Config
from finetrace.methods.neuron_drift.analysis import (
    PLACEBO,
    PRIMARY,
    RANDOM,
    SAFETY_ONLY,
    Settings,
    analyse,
    untouched,
)
from finetrace.methods.neuron_drift.grouping import Grouped, grouped, picked
from finetrace.methods.neuron_drift.margin import anchored
from finetrace.methods.neuron_drift.measuring import Deltas, drift_rows, matched_pairs, seed003_table
from finetrace.methods.neuron_drift.result import Analysis, Comparison, Result
from finetrace.stats import as_ratio
from finetrace.weights.read import dense_weight, oriented
from finetrace.weights.scores import linear_layers, score

SLICE = "weights"
AS_THE_SEED = ("safety_top", "safety_only", "utility_top", "random")
"""The four groups that seed 003 reports."""


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """One fine-tune against the base. seen: nothing, as the method reads no pass."""
    groups = desk.once("groups", lambda: _groups(config, desk))
    weights = desk.once("weights", lambda: _weights(desk))
    changes = {module: delta for module, delta in desk.deltas().items() if module in groups.shapes}
    found = _analysis(config, groups, changes, weights)
    table, rule = seed003_table(changes, weights.__getitem__, groups.groups, AS_THE_SEED, groups.shapes)
    safety = desk.samples("safety")[: config.samples]
    anchor = anchored(
        desk.open(),
        changes,
        groups.groups[SAFETY_ONLY],
        safety,
        config.margin,
        pad=_pad(desk),
        batch=desk.batch_size,
    )
    numbers = _numbers(found, groups)
    return Result(
        numbers=numbers,
        slices={SLICE: numbers},
        analysis=found,
        reliability=groups.reliability,
        overlap=groups.overlap,
        anchor=anchor,
        seed003=table,
        seed003_rule=rule,
        notes=_notes(config, groups, changes),
    )


def _groups(config: Config, desk: Desk) -> Grouped:
    """Scores of the base on the three sets, and all that is chosen by them."""
    sets = {name: desk.samples(name)[: config.samples] for name in SETS}
    whole = sum(len(samples) for samples in sets.values())
    scores, before = {}, 0
    with desk.pair.open("base") as model:
        for name, samples in sets.items():
            scores[name] = score(
                model,
                samples,
                pad=_pad(desk),
                kinds=(config.score,),
                batch=desk.batch_size,
                advance=lambda done, _, so_far=before: desk.advance(so_far + done, whole),
            )
            before += len(samples)
        return grouped(picked(scores, config), _weights(desk), config)


def _weights(desk: Desk) -> Mapping[str, Tensor]:
    """Module -> the base's weight [out, in] of every linear layer in the blocks; views, but for quantised ones."""
    with desk.pair.open("base") as model:
        layers, _ = linear_layers(model)
        return {name: oriented(one.module, dense_weight(one.module)).detach() for name, one in layers.items()}


def _analysis(config: Config, groups: Grouped, changes: Deltas, weights: Mapping[str, Tensor]) -> Analysis:
    settings = Settings(math.log(config.margin), config.draws, config.seed, groups.ceilings)
    if not changes:
        return untouched(groups.contrasts, groups.sizes, settings)
    rows = drift_rows(changes, weights.__getitem__, groups.groups)
    pairs = {key: matched_pairs(found, [changes]) for key, found in groups.matched.items()}
    return analyse(rows, groups.contrasts, groups.sizes, pairs, settings)


def _pad(desk: Desk) -> int:
    """Any token: padding is not attended to."""
    pad = desk.pair.tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _numbers(found: Analysis, groups: Grouped) -> dict[str, Estimate]:
    """The headline figures; all of the weights alone, so that no texts are behind them."""
    by_kind = {c.kind: c for c in found.comparisons if c.group == SAFETY_ONLY}
    matched = by_kind[PRIMARY[1]]
    mine = next(g for g in found.groups if g.group == SAFETY_ONLY)
    reliable = next((r for r in groups.reliability if r.group == SAFETY_ONLY), None)
    samples = reliable.samples if reliable else 0
    return {
        "drift_ratio": _ratio(matched),
        "drift_ratio_placebo": _ratio(by_kind[PLACEBO]),
        "drift_ratio_random": _ratio(by_kind[RANDOM]),
        "relative_drift": _exact(mine.relative, "of the weights' norm", mine.adapted),
        "superiority": matched.superiority or Estimate(None, "chance", 0, None),
        "match_rate": _exact(matched.rate, "share", mine.entries),
        "adapted_share": _exact(mine.adapted_share, "share", mine.entries),
        "split_half_jaccard": _exact(reliable.split_half if reliable else None, "Jaccard index", samples),
    }


def _ratio(found: Comparison) -> Estimate:
    """exp of the pooled log ratio, with its replicates."""
    theta, unit = found.theta, "times"
    if theta.value is None:
        return Estimate(None, unit, 0, None)
    low, high = as_ratio(theta.low), as_ratio(theta.high)
    replicates = None if theta.replicates is None else np.exp(theta.replicates)
    return Estimate(math.exp(theta.value), unit, theta.n, None, low, high, replicates)


def _exact(value: float | None, unit: str, n: int) -> Estimate:
    return Estimate(value, unit, n if value is not None else 0, None)


def _notes(config: Config, groups: Grouped, changes: Deltas) -> tuple[str, ...]:
    """What limits this result and no table says."""
    notes = []
    if not changes:
        notes.append(
            "The fine-tune changes no linear layer in the decoder blocks: no group moved, and there is no data."
        )
    if config.unit == "rows":
        notes.append(
            "Whole rows have no partner in their own row: `matched` is matched on matrix and size only, and rows still differ "
            "by the scale of their gradients, which moves them in any fine-tune."
        )
    few = min((one.samples for one in groups.reliability), default=0)
    if few < 32:
        notes.append(f"The groups rest on {few} samples of a set: fewer than 32 make them unsteady.")
    return tuple(notes)
