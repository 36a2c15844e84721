"""The page's tables: sets, modules, layers and samples. Numbers alone: no word of a request or an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.methods.safety_attribution.result import COMPLY, QUANTITIES, SAFETY, UTILITY, Result

# Every table has a column `slice`: it says of what the row is, and so that nothing in it is anybody's words.
BOTH = "safety, utility"
SIGNS = "Nats per token; above 0, the update raises the loss: of refusals, so that safety got worse; of useful answers."


def plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def layer_name(layer: int) -> str:
    return "outside" if layer < 0 else str(layer)


def checks_table(result: Result) -> Table:
    """Completeness, set by set."""
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            check.n,
            check.base,
            check.tuned,
            check.difference,
            check.total,
            check.error,
            check.one_panel,
            check.points,
            check.read,
        )
        for name, check in result.checks.items()
    ]
    note = (
        "difference: mean loss of the tuned model minus the base's. total: the modules' effects, added up. error: how far "
        "the two are apart, over the sum of the modules' absolute effects; first_error: with the configured nodes once, of "
        "the points that were taken in the end. read: loss of the base with the update added as it was read. A right sum does not validate the shares: another path would divide it otherwise."
    )
    columns = ("slice", "samples", "base_loss", "tuned_loss", "difference", "total", "error", "first_error")
    columns += ("points", "read")
    return Table("completeness", "Do the effects add up?", columns, tuple(rows), note)


def modules_table(result: Result, most: int) -> Table:
    """The modules with the largest effects on the margin and on the safety loss, largest first."""
    data = result.modules.data
    size = np.maximum(np.abs(np.asarray(data["margin"])), np.abs(np.asarray(data[SAFETY])))
    order = np.argsort(-size, kind="stable")[:most]
    columns = ("slice", "module", "layer")
    for name in QUANTITIES:
        columns += (name, f"{name}_low", f"{name}_high", f"{name}_q")
    columns += ("first_safety", "first_utility")
    rows = tuple(
        (
            BOTH,
            str(data["module"][i]),
            layer_name(int(data["layer"][i])),
            *(plain(float(np.asarray(data[name])[i])) for name in columns[3:]),
        )
        for i in order
    )
    note = (
        f"The {len(rows)} of {len(result.places)} modules with the largest effect on the margin or the safety loss. {SIGNS} "
        "contrast: safety minus utility. margin: effect on refusing minus that on complying. 95% intervals over samples; q: "
        "Benjamini-Hochberg over all modules. first_: the first order at the base, the others integrated."
    )
    return Table("modules", "Module by module", columns, rows, note)


def layers_table(result: Result) -> Table:
    data = result.layers.data
    columns = ("slice", "layer", "modules")
    for name in QUANTITIES:
        columns += (name, f"{name}_low", f"{name}_high")
    rows = tuple(
        (
            BOTH,
            layer_name(int(data["layer"][i])),
            int(data["modules"][i]),
            *(plain(float(np.asarray(data[name])[i])) for name in columns[3:]),
        )
        for i in range(len(result.layers))
    )
    note = f"{SIGNS} outside: embeddings, the final norm and the head."
    return Table("layers", "Layer by layer", columns, rows, note)


def sets_table(result: Result) -> Table:
    """Shares of samples; of the safety set these are all that is said of a request."""
    data = result.samples.data
    of, effect = np.asarray(data["set"]), np.asarray(data["effect"])
    rows: list[tuple[Cell, ...]] = []
    for name in (SAFETY, COMPLY, UTILITY):
        values = effect[of == name]
        quantiles = np.quantile(values, [0.05, 0.5, 0.95])
        share = float((values > 0).mean())
        rows.append((name, len(values), share, *(float(v) for v in quantiles)))
    gap = effect[of == SAFETY] - effect[of == COMPLY]
    quantiles = np.quantile(gap, [0.05, 0.5, 0.95])
    rows.append(("margin", len(gap), float((gap > 0).mean()), *(float(v) for v in quantiles)))
    columns = ("slice", "samples", "share_raised", "low_5", "median", "high_95")
    return Table("sets", "How many samples got worse", columns, tuple(rows), SIGNS)


def samples_table(result: Result) -> Table:
    """One row a sample, without its words."""
    data = result.samples.data
    columns = ("slice", "sample", "tokens", "base_loss", "tuned_loss", "effect", "first_order")
    names = ("set", *columns[1:])
    rows = tuple(
        tuple(_cell(data[name], i) for name in names)
        for i in range(len(result.samples))
        if data["set"][i] != COMPLY
    )
    note = f"{SIGNS} Requests and answers are not shown."
    return Table("samples", "Sample by sample", columns, rows, note)


def _cell(column: np.ndarray | list[str], row: int) -> Cell:
    value = column[row]
    return value if isinstance(value, str) else value.item()


def controls_table(result: Result) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, drawn in result.controls.items():
        actual = float(result.first[name].sum(1).mean())
        integrated = float(result.effects[name].sum(1).mean())
        ends = (float(drawn.mean()), float(drawn.min()), float(drawn.max())) if len(drawn) else (None,) * 3
        rows.append((name, actual, *ends, len(drawn), integrated))
    columns = ("slice", "first_order", "control_mean", "control_min", "control_max", "draws", "integrated")
    note = (
        "The same update with random signs on the rows and columns of every matrix: of the same size and spectrum, in no "
        "particular direction. Its first-order effect is 0 in expectation; the update's own lies outside of its range where "
        "it is aligned with the loss at the base. (The base against itself has no update, and no effect.)"
    )
    return Table("controls", "Negative controls", columns, tuple(rows), note)


def ranges(results: Sequence[Result], key: str) -> tuple[float, float] | None:
    """The smallest and largest of a number over nulls."""
    known = [v for one in results if (v := one.numbers[key].value) is not None]
    return (min(known), max(known)) if known else None
