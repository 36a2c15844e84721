"""The report in plain text: what was compared, how sure it is, and what seed 003's own rule would have said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from finetrace.methods.neuron_drift.analysis import PRIMARY, UNDECIDED
from finetrace.methods.neuron_drift.result import Comparison
from finetrace.methods.neuron_drift.words import control, group

if TYPE_CHECKING:
    from finetrace.api.drift.analysis import Outcome
    from finetrace.api.drift.experiment import Experiment

__all__ = ["report"]

# Log of a ratio that is written out.
_LARGEST = 10.0


def report(experiment: Experiment, outcome: Outcome) -> str:
    """The whole report. Counts by layer, never a weight's place."""
    parts = (_head, _verdict, _groups, _reliability, _comparisons, _matching, _anchor, _counts, _seed003)
    return "\n".join(line for part in parts for line in part(experiment, outcome)) + "\n"


def _head(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    recipe, lora = experiment.recipe, experiment.recipe.lora
    yield "Drift of safety-critical weights"
    yield "================================"
    yield ""
    yield f"base        {recipe.model}"
    if recipe.kind == "lora":
        targets = ", ".join(lora.targets)
        yield f"fine-tune   {recipe.name}: LoRA of rank {lora.r}, dropout {lora.dropout:g}, on {targets}"
    else:
        yield f"fine-tune   {recipe.name}: all weights"
    yield f"data        {len(experiment.rows.rows)} rows of {experiment.rows.source}"
    yield f"seeds       {outcome.analysis.seeds}" + _one_seed(outcome)
    for seed, (first, last) in outcome.losses.items():
        yield f"  seed {seed}    loss {first:.3f} to {last:.3f} nats a token"
    config = experiment.config
    yield f"groups      {config.score.upper()}; top {config.top_k:g}; set difference p={config.p:g}, q={config.q:g}; per matrix"
    yield f"margin      {config.margin:g} times, in root mean square change"


def _one_seed(outcome: Outcome) -> str:
    return "" if outcome.analysis.seeds > 1 else " (intervals are over layers and speak of this run alone)"


def _verdict(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    analysis = outcome.analysis
    yield from _title("Verdict")
    primary = next((c for c in analysis.comparisons if (c.group, c.kind) == PRIMARY), None)
    if primary is not None:
        yield f"{group(primary.group)}: {primary.word}, {_ratio(primary)}"
        yield f"  against weights {control(primary.kind)}" + (f": {primary.reason}" if primary.reason else "")
    for claim in analysis.claims:
        yield f"{claim.name}: {claim.word}: {claim.sentence}"
    yield "Drift says how far weights moved, not whether safety was lost: `finetrace audit` measures that."


def _groups(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("Groups at the last step (adapted matrices only)")
    rows = [
        (
            group(g.group),
            f"{g.entries:,}",
            _percent(g.adapted_share),
            _number(g.l2),
            _number(g.relative),
            _number(g.one_minus_cosine),
            _number(g.rms_share),
        )
        for g in outcome.analysis.groups
    ]
    yield from _table(("group", "weights", "adapted", "l2", "relative", "1 - cosine", "rms share"), rows)
    yield "relative: norm of the change over the norm of the weights. rms share: root mean square change over that of all"
    yield "weights of the same matrices; not to be compared between groups, which lie in other rows and columns."


def _reliability(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("Can the groups be found again?")
    rows = [
        (group(r.group), str(r.samples), f"{r.split_half:.3f}", f"{r.chance:.3f}", f"{r.ceiling:.3f}")
        for r in outcome.groups.reliability
    ]
    yield from _table(("group", "samples", "split half", "chance", "noise ceiling"), rows)
    yield "Jaccard indices. Below a ceiling of 0.5 a group is mostly noise, and nothing is decided on it."
    overlap = outcome.groups.overlap.value
    if overlap is not None:
        yield f"Safety and utility top k share {overlap:.3f} of theirs."


def _comparisons(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("Comparisons")
    rows = [
        (
            group(c.group),
            control(c.kind),
            _number(c.theta.value),
            _times(c.theta.value),
            _interval(c.theta.low, c.theta.high),
            _number(c.p_holm),
            _number(c.p_permutation),
            _number(c.superiority.value if c.superiority else None),
            _number(c.smallest_detectable),
            c.word,
        )
        for c in outcome.analysis.comparisons
    ]
    yield from _table(
        (
            "group",
            "against",
            "Theta",
            "exp(Theta)",
            "95% interval",
            "p Holm",
            "p swaps",
            "chance",
            "MDE",
            "verdict",
        ),
        rows,
    )
    over = "layers" if outcome.analysis.seeds == 1 else "seeds and layers"
    yield f"Theta: log ratio of root mean square drift, pooled over {over}; exp(Theta) and its interval are ratios. p Holm:"
    yield f"corrected over the {outcome.analysis.family} confirmatory comparisons. p swaps: matched pairs swapped by whole"
    yield "columns. chance: that a weight moved more than its partner. MDE: the true ratio that would be seen with chance 0.8."
    for c in outcome.analysis.comparisons:
        if c.word == UNDECIDED:
            yield f"Undecided, {group(c.group)} against {control(c.kind)}: {c.reason}."


def _matching(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("How well the controls match")
    rows = [
        (group(c.group), control(c.kind), _percent(c.rate), what, f"{gap:+.3f}")
        for c in outcome.analysis.comparisons
        for what, gap in c.balance.items()
    ]
    yield from _table(("group", "control", "found a partner", "matched on", "gap"), rows)
    yield "gap: what is left between group and control, in standard deviations; below 0.1 is balanced."


def _anchor(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("What the margin is worth")
    anchor = outcome.anchor
    if anchor is None:
        yield "The fine-tune touches no weight of the group."
        return
    yield f"The first fine-tune with the change of {group(anchor.group)} times {anchor.factor:g}, on the safety answers:"
    for what, before, change in (
        ("loss, nats a token", anchor.loss, anchor.loss_change),
        ("first-token mass", anchor.mass, anchor.mass_change),
    ):
        yield f"  {what:<20} {before:.4f}, change {_signed(change.value)} [{_signed(change.low)}, {_signed(change.high)}]"


def _counts(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("Weights of the groups by layer (in adapted matrices)")
    table = outcome.analysis.counts.data
    cells = {
        (str(name), int(layer)): (int(entries), int(adapted))
        for name, layer, entries, adapted in zip(
            *(table[key] for key in ("group", "layer", "entries", "adapted")), strict=True
        )
    }
    names = list(dict.fromkeys(name for name, _ in cells))
    rows = []
    for layer in sorted({layer for _, layer in cells}):
        held = [cells.get((name, layer), (0, 0)) for name in names]
        rows.append((str(layer), *(f"{entries:,} ({adapted:,})" for entries, adapted in held)))
    yield from _table(("layer", *names), rows)


def _seed003(experiment: Experiment, outcome: Outcome) -> Iterator[str]:
    yield from _title("As seed 003 computed it (first seed; not to be decided by)")
    table = outcome.seed003.data
    rows = [
        (group(str(name)), *(_number(float(value)) for value in values))
        for name, *values in zip(
            *(table[key] for key in ("group", "mean", "sd", "median", "relative_mean", "d")), strict=True
        )
    ]
    yield from _table(("group", "mean |dw|", "sd", "median", "mean relative", "Cohen's d"), rows)
    if outcome.seed003_rule:
        yield f"Its rule says {outcome.seed003_rule}."
    yield "Weights that were never adapted are pooled in as 0; relative change divides by single weights, so that random"
    yield "weights, which are small, seem to move most; d is from summaries; and its rule asks for a gap of 0.01 between means,"
    yield "far above any change that a LoRA makes, so that H1 could not come out."


def _title(text: str) -> tuple[str, str, str]:
    return "", text, "-" * len(text)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.ljust(width) if i == 0 or not _is_number(cell, row is columns) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _is_number(cell: str, heading: bool) -> bool:
    return not heading and (cell[:1].isdigit() or cell[:1] in "+-")


def _ratio(found: Comparison) -> str:
    if found.theta.value is None:
        return "no data"
    return f"{_times(found.theta.value)} times {_interval(found.theta.low, found.theta.high)}"


def _times(theta: float | None) -> str:
    return "-" if theta is None else _exp(theta)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{_exp(low)}, {_exp(high)}]"


def _exp(theta: float) -> str:
    """A ratio; an interval from one cluster may reach further than numbers do."""
    return f"{math.exp(theta):.3f}" if theta < _LARGEST else "beyond"


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
