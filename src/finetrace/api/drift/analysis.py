"""From fine-tunes and their logs to results: comparisons over seeds, the margin's worth, tables, figures and the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from finetrace.api.drift.experiment import Experiment
from finetrace.core.errors import BadInput
from finetrace.core.files import write_json, write_text
from finetrace.core.result import Columns
from finetrace.data.examples import make_examples
from finetrace.drawing.papers import write_figures
from finetrace.finetune.drift import read_drift
from finetrace.finetune.trainer import LOSSES
from finetrace.methods.neuron_drift import analysis as method
from finetrace.methods.neuron_drift.analysis import SAFETY_ONLY, Settings
from finetrace.methods.neuron_drift.grouping import REPORTED, Grouped
from finetrace.methods.neuron_drift.margin import anchored
from finetrace.methods.neuron_drift.measuring import entry_table, matched_pairs, seed003_table
from finetrace.methods.neuron_drift.result import Analysis, Anchor
from finetrace.methods.neuron_drift.run import AS_THE_SEED
from finetrace.models import open_pair
from finetrace.models.source import resolve
from finetrace.weights.delta import Delta

__all__ = ["Outcome", "analyse"]

STATISTICS = "statistical_results.json"
REPORT = "drift_analysis_report.txt"
_BINS = 40


@dataclass(frozen=True, eq=False)
class Outcome:
    """All that the report is made of. steps: seed, step, group, rms, share (of that of all weights of the same matrices),
    total. sizes: |change| of every adapted weight of a group: counts between `edges`, all seeds together.
    groups: without anyone's places but through `sizes`. losses: seed -> mean of its first and last five steps.
    """

    analysis: Analysis
    groups: Grouped
    anchor: Anchor | None
    seed003: Columns
    seed003_rule: str | None
    steps: Columns
    edges: np.ndarray
    sizes: Mapping[str, np.ndarray]
    losses: Mapping[int, tuple[float, float]]


def analyse(
    experiment: Experiment, groups: Grouped, seeds: Sequence[int], weights: Mapping[str, Tensor]
) -> Path:
    """Compares the fine-tunes of these seeds and writes `results/`; returns the report's path."""
    from finetrace.api.drift.figures import figures
    from finetrace.api.drift.paper import report

    changes = [_changes(experiment, groups, seed, weights) for seed in seeds]
    rows = _joined([read_drift(experiment.model(seed)) for seed in seeds])
    config = experiment.config
    settings = Settings(math.log(config.margin), config.draws, config.seed, groups.ceilings)
    pairs = {key: matched_pairs(found, changes) for key, found in groups.matched.items()}
    table, rule = seed003_table(changes[0], weights.__getitem__, groups.groups, AS_THE_SEED, groups.shapes)
    edges, sizes = _sizes(changes, weights, groups)
    outcome = Outcome(
        analysis=method.analyse(rows, groups.contrasts, groups.sizes, pairs, settings),
        groups=groups,
        anchor=_anchor(experiment, groups, changes[0], seeds[0]),
        seed003=table,
        seed003_rule=rule,
        steps=_steps(rows),
        edges=edges,
        sizes=sizes,
        losses={seed: _losses(experiment.model(seed)) for seed in seeds},
    )
    write_figures(experiment.results / "figures", figures(outcome))
    write_json(experiment.results / STATISTICS, _plain(_told(experiment, outcome)))
    path = experiment.results / REPORT
    write_text(path, report(experiment, outcome))
    return path


def _changes(
    experiment: Experiment, groups: Grouped, seed: int, weights: Mapping[str, Tensor]
) -> dict[str, Delta]:
    """Module -> change of one fine-tune, of the matrices that the groups are of."""
    from finetrace.weights.adapter_files import adapter_file_deltas
    from finetrace.weights.stream import streamed

    folder = experiment.model(seed)
    source = resolve(folder)
    if source.kind == "adapter":
        found = adapter_file_deltas(source, weight=weights.__getitem__)
    else:
        base = resolve(experiment.base, revision=experiment.recipe.revision)
        found = {delta.module: delta for delta in streamed(base, source)}
    for module, delta in found.items():
        if module in groups.shapes and delta.shape != groups.shapes[module]:
            raise BadInput(
                f"{folder} is a fine-tune of another model: its change of {module} is {delta.shape[0]} x {delta.shape[1]}, "
                f"and the base's weight is {groups.shapes[module][0]} x {groups.shapes[module][1]}. Delete that folder and "
                "run the phase `train` again."
            )
    if not found.keys() & groups.shapes.keys():
        raise BadInput(
            f"{folder} changes none of the matrices that the groups are of: it is of another model."
        )
    return {module: delta for module, delta in found.items() if module in groups.shapes}


def _joined(tables: Sequence[Columns]) -> Columns:
    names = list(tables[0].data)

    def column(name: str) -> Any:
        parts = [table.data[name] for table in tables]
        if isinstance(parts[0], list):
            return [value for part in parts for value in part]
        return np.concatenate([np.asarray(part) for part in parts])

    return Columns({name: column(name) for name in names})


def _anchor(
    experiment: Experiment, groups: Grouped, changes: Mapping[str, Delta], seed: int
) -> Anchor | None:
    """What the margin is worth, on the first seed's fine-tune."""
    recipe = experiment.recipe
    pair = open_pair(
        experiment.base, experiment.model(seed), device=experiment.device, revision=recipe.revision
    )
    pair.load()
    pad = pair.tokenizer.pad_token_id
    safety = make_examples(experiment.sets["safety"], pair.tokenizer, max_tokens=recipe.data.max_tokens)
    return anchored(
        pair.open("tuned"),
        changes,
        groups.groups[SAFETY_ONLY],
        safety,
        experiment.config.margin,
        pad=pad if isinstance(pad, int) else 0,
        batch=16,
    )


def _steps(rows: Columns) -> Columns:
    """Root mean square drift of every reported group at every logged step of every seed, adapted matrices only."""
    data = {name: np.asarray(values) for name, values in rows.data.items()}
    typical = {
        (s, t, m): square / n
        for s, t, m, g, square, n in zip(
            *(data[key] for key in ("seed", "step", "module", "group", "square", "n")), strict=True
        )
        if g == "all"
    }
    sums: dict[tuple[int, int, str], list[float]] = {}
    for s, t, g, m, n, square, total in zip(
        *(data[key] for key in ("seed", "step", "group", "module", "n", "square", "total")), strict=True
    ):
        if g in REPORTED:
            cell = sums.setdefault((int(s), int(t), str(g)), [0.0, 0.0, 0.0, float(total)])
            cell[0] += float(square)
            cell[1] += float(n)
            cell[2] += float(n) * typical.get((s, t, m), math.nan)
    keys = sorted(sums)
    values = np.array([sums[key] for key in keys], np.float64).reshape(-1, 4)
    square, n, expected, total = values.T
    return Columns(
        {
            "seed": np.array([key[0] for key in keys], np.int64),
            "step": np.array([key[1] for key in keys], np.int64),
            "group": [key[2] for key in keys],
            "rms": np.sqrt(square / n),
            "share": np.sqrt(
                np.divide(square, expected, out=np.full_like(square, np.nan), where=expected > 0)
            ),
            "total": total,
        }
    )


def _sizes(
    changes: Sequence[Mapping[str, Delta]], weights: Mapping[str, Tensor], groups: Grouped
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How large single changes are at the end, in logarithmic bins: group -> counts, weights that are adapted only."""
    found = {}
    for name in REPORTED:
        group = groups.groups[name]
        moved = []
        for change in changes:
            here = dataclasses.replace(
                group, places={m: ids for m, ids in group.places.items() if m in change}
            )
            moved.append(np.abs(entry_table(change, weights.__getitem__, here, groups.shapes)[0]))
        found[name] = np.concatenate(moved)
    largest = max((values.max() for values in found.values() if len(values)), default=1.0) or 1.0
    edges = np.geomspace(largest * 1e-5, largest * (1 + 1e-9), _BINS + 1)
    return edges, {name: np.histogram(np.maximum(v, edges[0]), edges)[0] for name, v in found.items()}


def _losses(folder: Path) -> tuple[float, float]:
    from finetrace.core.files import read_json

    losses = read_json(folder / LOSSES)["loss"]
    return float(np.mean(losses[:5])), float(np.mean(losses[-5:]))


def _told(experiment: Experiment, outcome: Outcome) -> dict[str, Any]:
    """Everything but the weights' places."""
    analysis = outcome.analysis
    return {
        "schema": 1,
        "model": experiment.recipe.model,
        "recipe": experiment.recipe.name,
        "seeds": analysis.seeds,
        "margin": analysis.margin,
        "groups": analysis.groups,
        "reliability": outcome.groups.reliability,
        "safety_and_utility_overlap": outcome.groups.overlap,
        "comparisons": analysis.comparisons,
        "confirmatory_family": analysis.family,
        "hypotheses": analysis.claims,
        "anchor": outcome.anchor,
        "layer_module_map": analysis.map,
        "counts_by_layer": analysis.counts,
        "curves": analysis.curves,
        "steps": outcome.steps,
        "losses": {str(seed): pair for seed, pair in outcome.losses.items()},
        "seed003": {"table": outcome.seed003, "rule": outcome.seed003_rule, "note": "not to be decided by"},
    }


def _plain(value: Any) -> Any:
    """As JSON holds it: no data is null, and replicates stay out."""
    if isinstance(value, Columns):
        return {name: _plain(column) for name, column in value.data.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.name != "replicates"]
        return {name: _plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
