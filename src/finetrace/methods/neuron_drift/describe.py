"""The Result as a Page: verdicts, counts by layer and what limits them. No weight's place is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetrace.core.estimate import Estimate
from finetrace.core.page import (
    Block,
    Cell,
    Figure,
    Heatmap,
    Line,
    Number,
    Page,
    Scatter,
    Series,
    Table,
    Warning,
)
from finetrace.core.result import Columns
from finetrace.methods.neuron_drift.result import Analysis, Anchor, Comparison, Result
from finetrace.methods.neuron_drift.words import NUMBERS, control, group
from finetrace.stats import as_ratio

BALANCED = 0.1
"""Standardised gap up to which matching is taken to have worked."""


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Verdicts first, then what they rest on: groups, matching, reliability, the margin; then the seed's own figures. nulls:
    the same method's results on harmless fine-tunes of the same base, whose groups are the same weights."""
    blocks: list[Block] = [
        Number(key, *_labelled(key, estimate)) for key, estimate in result.numbers.items() if key in NUMBERS
    ]
    blocks += [Warning(text) for text in _warnings(result)]
    blocks += [verdicts_table(result.analysis), claims_table(result.analysis)]
    blocks += _beside_nulls(result, nulls)
    blocks += [groups_table(result.analysis), counts_table(result.analysis), balance_table(result.analysis)]
    blocks += [_reliability(result), *_anchor(result.anchor), map_figure(result.analysis)]
    blocks += [curve_figure(result.analysis)] if _is_logged(result.analysis) else []
    blocks.append(_seed003(result))
    return Page("Drift of safety-critical weights", _summary(result), tuple(blocks))


def _labelled(key: str, estimate: Estimate) -> tuple[str, Estimate, str]:
    label, help_text = NUMBERS[key]
    return label, estimate, help_text


def _summary(result: Result) -> str:
    found = _primary(result.analysis)
    share = result.numbers["adapted_share"].value
    if found is None or found.theta.value is None:
        return "Nothing to compare: the fine-tune changes no matrix that holds a safety group."
    of = "" if share is None else f" ({share:.0%} of the group lies in adapted matrices)"
    ratio = f"{math.exp(found.theta.value):.3g}"
    low, high = as_ratio(found.theta.low), as_ratio(found.theta.high)
    if low is not None and high is not None:
        ratio += f" [{low:.3g}, {high:.3g}]"
    runs = (
        "of this run alone" if result.analysis.seeds == 1 else f"over {result.analysis.seeds} training seeds"
    )
    return (
        f"The weights that safety rests on moved {ratio} times as much as matched weights{of}: {found.word}, "
        f"{runs}. " + "; ".join(f"{claim.name}: {claim.word}" for claim in result.analysis.claims) + "."
    )


def _primary(analysis: Analysis) -> Comparison | None:
    return next((c for c in analysis.comparisons if (c.group, c.kind) == ("safety_only", "matched")), None)


def _warnings(result: Result) -> list[str]:
    analysis = result.analysis
    found = list(result.notes)
    if analysis.seeds == 1:
        found.append(
            "One fine-tune: intervals are over its layers and speak of this run. What another seed of the same training "
            "would do is not known from it."
        )
    found += [
        f"{group(c.group)} against {control(c.kind)}: undecided, {c.reason}."
        for c in analysis.comparisons
        if c.word == "undecided" and c.reason
    ]
    found += [
        f"{group(c.group)} against {control(c.kind)}: matching left a gap of {gap:.2f} standard deviations in the {what}, "
        "which alone can move the ratio by a few percent."
        for c in analysis.comparisons
        if c.kind == "matched"
        for what, gap in c.balance.items()
        if abs(gap) > BALANCED
    ]
    partly = [g for g in analysis.groups if g.entries and g.adapted < g.entries]
    if partly:
        least = min(partly, key=lambda g: g.adapted / g.entries)
        found.append(
            f"Matrices that the fine-tune does not touch are left out, not counted as 0: {least.adapted / least.entries:.0%} "
            f"of the group {group(least.group)} lies in adapted ones."
        )
    return found


def verdicts_table(analysis: Analysis) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            group(c.group),
            control(c.kind),
            c.word,
            as_ratio(c.theta.value),
            as_ratio(c.theta.low),
            as_ratio(c.theta.high),
            c.p_holm,
            c.p,
            c.p_permutation,
            c.p_flip,
            c.superiority.value if c.superiority else None,
            c.rate,
            c.smallest_detectable,
            c.layers,
            c.matrices,
            c.reason,
        )
        for c in analysis.comparisons
    ]
    columns = ("group", "against", "verdict", "ratio", "low", "high", "p_holm", "p", "p_swaps", "p_signs")
    columns += ("superiority", "match_rate", "smallest_seen", "layers", "matrices", "why")
    over = "layers" if analysis.seeds == 1 else f"{analysis.seeds} seeds and layers"
    note = (
        f"Ratios of root mean square drift with 95% intervals over {over}; margin {analysis.margin:.2f}. p_holm: over the "
        f"{analysis.family} confirmatory comparisons, which alone are corrected; the others are for reading. p_swaps: matched "
        "pairs swapped by whole columns. p_signs: signs of matrices. smallest_seen: true ratio seen with chance 0.8."
    )
    return Table("verdicts", "Did the group move more?", columns, tuple(rows), note)


def claims_table(analysis: Analysis) -> Table:
    rows = tuple((claim.name, claim.word, claim.sentence) for claim in analysis.claims)
    note = "H1: different and more, against the matched control and the placebo. H2: equivalent to the matched control."
    return Table("hypotheses", "Seed 003's hypotheses", ("hypothesis", "word", "why"), rows, note)


def _beside_nulls(result: Result, nulls: Sequence[Result]) -> list[Block]:
    """The primary ratio of the pair and of every null, whose groups are the same."""
    measured = [(n, e) for n, null in enumerate(nulls, 1) if (e := null.numbers["drift_ratio"]).value]
    mine = result.numbers["drift_ratio"]
    if not measured or mine.value is None:
        return []
    names = ("pair", *(f"null {n}" for n, _ in measured))
    found = (mine, *(e for _, e in measured))
    series = Series(
        "ratio", names, *(tuple(getattr(e, side) for e in found) for side in ("value", "low", "high"))
    )
    note = "The same weights in harmless fine-tunes of the same base. The pair among the nulls: what it does is not about safety."
    return [
        Figure("against_nulls", "Ratio to the matched control", Scatter((series,)), "", "drift ratio", note)
    ]


def groups_table(analysis: Analysis) -> Table:
    rows = tuple(
        (
            group(g.group),
            g.entries,
            g.adapted_share,
            g.matrices,
            g.l2,
            g.relative,
            g.one_minus_cosine,
            g.rms_share,
        )
        for g in analysis.groups
    )
    columns = ("group", "weights", "adapted", "matrices", "l2", "relative", "one_minus_cosine", "rms_share")
    note = (
        "Over adapted matrices only. rms_share: root mean square change over that of all weights of the same matrices. "
        "Not to be compared between groups: they lie in other rows and columns. That is what the controls are for."
    )
    return Table("groups", "Drift of the groups", columns, rows, note)


def counts_table(analysis: Analysis) -> Table:
    """Weights by layer, a column a group; adapted ones beside all."""
    table = analysis.counts.data
    names = list(dict.fromkeys(table["group"]))
    layers = sorted({int(layer) for layer in table["layer"]})
    cells = {
        (name, int(layer)): (int(entries), int(adapted))
        for name, layer, entries, adapted in zip(*(table[k] for k in table), strict=True)
    }
    rows = tuple(
        (layer, *(n for name in names for n in cells.get((name, layer), (0, 0)))) for layer in layers
    )
    columns = ("layer", *(title for name in names for title in (name, f"{name}_adapted")))
    return Table(
        "counts", "Weights of the groups by layer", columns, rows, "adapted: in matrices that moved."
    )


def balance_table(analysis: Analysis) -> Table:
    rows = tuple(
        (group(c.group), control(c.kind), c.rate, what, gap)
        for c in analysis.comparisons
        for what, gap in c.balance.items()
    )
    columns = ("group", "against", "match_rate", "matched_on", "gap")
    note = "gap: what matching left between group and control, in standard deviations; under 0.1 is usual."
    return Table("balance", "How well the controls match", columns, rows, note)


def _reliability(result: Result) -> Table:
    rows = tuple(
        (group(r.group), r.samples, r.split_half, r.chance, r.ceiling, r.ceiling >= 0.5)
        for r in result.reliability
    )
    columns = ("group", "samples", "split_half", "chance", "ceiling", "usable")
    note = (
        "Jaccard index of the groups that two halves of the samples give, of random ones, and the ceiling expected between two "
        f"whole sets. Below 0.5 a group is mostly noise. Safety and utility top k share {_plain(result.overlap)} of theirs."
    )
    return Table("reliability", "Can the groups be found again?", columns, rows, note)


def _plain(found: Estimate) -> str:
    return "no data" if found.value is None else f"{found.value:.3g}"


def _anchor(anchor: Anchor | None) -> list[Block]:
    if anchor is None:
        return []
    rows = tuple(
        (what, before, change.value, change.low, change.high, change.n)
        for what, before, change in (
            ("loss of the safety answers, nats a token", anchor.loss, anchor.loss_change),
            ("first-token mass of the safety answers", anchor.mass, anchor.mass_change),
        )
    )
    columns = ("what", "as it is", "change", "low", "high", "samples")
    note = (
        f"The tuned model with the change of the group ({group(anchor.group)}) times {anchor.factor:.2f}, nothing else: what a "
        "drift at the margin is worth in behaviour. Near 0: a difference at the margin would not matter by itself."
    )
    return [Table("anchor", "What the margin means", columns, rows, note)]


def map_figure(analysis: Analysis) -> Figure:
    """log ratio against the matched control, layer by kind of matrix; only cells with q below 0.05 are named."""
    table = analysis.map.data
    kinds = tuple(dict.fromkeys(table["kind"]))
    layers = tuple(sorted({int(layer) for layer in table["layer"]}))
    cells: dict[tuple[int, str], list[float]] = {}
    for layer, kind, theta in zip(table["layer"], table["kind"], table["theta"], strict=True):
        cells.setdefault((int(layer), str(kind)), []).append(float(theta))
    values = tuple(
        tuple(sum(c) / len(c) if (c := cells.get((layer, str(kind)))) else None for kind in kinds)
        for layer in layers
    )
    named = [name for name, q in zip(table["module"], _numbers(analysis.map, "q"), strict=True) if q < 0.05]
    found = f"{len(named)} of {len(analysis.map)} matrices have q < 0.05 (Benjamini-Hochberg)"
    found += f": {', '.join(named[:6])}{' and others' if len(named) > 6 else ''}." if named else "."
    return Figure(
        "map",
        "Log ratio to the matched control",
        Heatmap(tuple(str(k) for k in kinds), tuple(str(n) for n in layers), values),
        "matrix",
        "layer",
        f"Above 0: the safety group moved more. Empty: not adapted, or no weight of the group found a partner. {found}",
    )


def _is_logged(analysis: Analysis) -> bool:
    return len(set(_numbers(analysis.curves, "step"))) > 1


def _numbers(table: Columns, name: str) -> list[float]:
    return [float(x) for x in table.data[name]]


def curve_figure(analysis: Analysis) -> Figure:
    """The set difference against each control over the steps."""
    table = analysis.curves.data
    series = []
    for kind in dict.fromkeys(table["kind"]):
        mine = [
            i
            for i, (g, k) in enumerate(zip(table["group"], table["kind"], strict=True))
            if (g, k) == ("safety_only", kind)
        ]
        if mine:
            runs = [
                tuple(_finite(_numbers(analysis.curves, key)[i]) for i in mine)
                for key in ("theta", "low", "high")
            ]
            steps = tuple(float(table["step"][i]) for i in mine)
            series.append(Series(control(str(kind)), steps, *runs))
    return Figure(
        "curve",
        "Log ratio over the training",
        Line(tuple(series)),
        "step",
        "log ratio of drift",
        "The set difference against each control; bands are 95% intervals at one step. A ratio does not grow with the dose.",
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _seed003(result: Result) -> Table:
    table = result.seed003.data
    rows = tuple(zip(*(tuple(_cell(x) for x in table[key]) for key in table), strict=True))
    rule = (
        f"Its rule says {result.seed003_rule}." if result.seed003_rule else "Its rule had nothing to decide."
    )
    note = (
        "Not to be decided by: weights that were never adapted are pooled in as 0, relative change divides by single weights "
        "(so random weights, many of which are tiny, seem to move most), d is from summaries, and its rule wants mean changes "
        f"that differ by 0.01, more than most LoRAs change a weight at all. {rule}"
    )
    return Table("seed003", "As seed 003 computed it", tuple(table), rows, note)


def _cell(value: object) -> Cell:
    """Plain values of a column; None where a figure is NaN."""
    plain = value if isinstance(value, str) else float(value)  # pyright: ignore[reportArgumentType]
    return None if isinstance(plain, float) and math.isnan(plain) else plain
