"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

from finetrace.core.estimate import Estimate
from finetrace.core.page import (
    Bars,
    Block,
    Figure,
    Histogram,
    Line,
    Number,
    Page,
    Passage,
    Series,
    Table,
    Warning,
)
from finetrace.methods.kl.observe import LOG_EDGES
from finetrace.methods.kl.result import KEYS, Positions, Result

LABELS = {
    "kl_mean": ("KL(tuned‖base)", "How surprising the base finds what the tuned model would say."),
    "reverse_kl_mean": ("KL(base‖tuned)", "How surprising the tuned model finds what the base would say."),
    "js_mean": ("Jensen-Shannon", "Symmetric, at most log 2 = 0.693."),
    "delta_nll_mean": (
        "Change in NLL",
        "Tuned minus base on the texts' own next tokens: above 0, the tuned model fits them worse.",
    ),
}


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Headline numbers first, then where it moved: by slice, role, position and size; then the texts themselves."""
    blocks: list[Block] = [Number(k, LABELS[k][0], result.numbers[k], LABELS[k][1]) for k in KEYS]
    blocks += _warnings(result)
    blocks += [_slice_table(result), _roles(result), _position_figure(result), _histogram(result)]
    blocks += [
        Passage(
            title=f"{p.slice}, text {p.row}: mean {p.mean:.3g} nats/token",
            tokens=p.tokens,
            values=p.values,
            unit="nats, KL(tuned‖base) of the prediction of this token",
            slice=p.slice,
        )
        for p in result.passages
    ]
    return Page("KL divergence", _summary(result), tuple(blocks))


def _summary(result: Result) -> str:
    measured = [(name, figures["kl_mean"]) for name, figures in result.slices.items()]
    known = [(name, e.value) for name, e in measured if e.value is not None]
    if not known:
        return "No token was scored."
    most, least = max(known, key=lambda s: s[1]), min(known, key=lambda s: s[1])
    if most[1] == 0:
        return "The two models predict exactly the same next tokens on every text."
    if len(known) == 1:
        return f"The next-token distributions moved by {most[1]:.3g} nats per token on `{most[0]}`."
    return (
        f"The next-token distributions moved most on `{most[0]}` ({most[1]:.3g} nats per token) and least on "
        f"`{least[0]}` ({least[1]:.3g})."
    )


def _warnings(result: Result) -> list[Block]:
    lost = {name: n for name, n in result.unscored.items() if n}
    found: list[Block] = []
    if lost:
        where = ", ".join(f"{n} on {name}" for name, n in lost.items())
        found.append(
            Warning(
                f"Some positions gave no finite figure and are in no mean ({where}): try --dtype float32."
            )
        )
    few = [name for name, figures in result.slices.items() if 0 < figures["kl_mean"].texts < 20]
    if few:
        found.append(Warning(f"Fewer than 20 texts on {', '.join(few)}: their intervals are rough."))
    return found


def _slice_table(result: Result) -> Table:
    rows = []
    for name, figures in result.slices.items():
        first = figures["kl_mean"]
        rows.append(
            (name, *(figures[key].value for key in KEYS), first.low, first.high, first.n, first.clusters)
        )
    columns = ("slice", *KEYS, "kl_low", "kl_high", "tokens", "texts")
    return Table("slices", "By slice", columns, tuple(rows), "Nats per token; 95% intervals over texts.")


def _roles(result: Result) -> Figure:
    roles = sorted({role for by_role in result.roles.values() for role in by_role})
    slices = tuple(result.roles)
    series = []
    for role in roles:
        found = [result.roles[name].get(role) for name in slices]
        series.append(Series(role, slices, *_columns(found)))
    return Figure(
        "roles",
        "By role of the token at which the prediction is made",
        Bars(tuple(series)),
        "slice",
        "KL(tuned‖base), nats/token",
        "`template` is what the chat template adds: the first answer token is predicted at its last token.",
        log_y=_spans_decades(series),
    )


def _columns(found: list[Estimate | None]) -> tuple[tuple[float | None, ...], ...]:
    return tuple(
        tuple(None if e is None else getattr(e, side) for e in found) for side in ("value", "low", "high")
    )


def _spans_decades(series: list[Series]) -> bool:
    values = [y for s in series for y in s.y if y]
    return bool(values) and min(values) > 0 and max(values) / min(values) > 30


def _position_figure(result: Result) -> Figure:
    series = tuple(Series(name, *_points(found)) for name, found in result.positions.items())
    return Figure(
        "positions",
        "By position in the text",
        Line(series),
        "position",
        "KL(tuned‖base), nats",
        "The token at which the prediction is made. Means over the texts that long; fewer than 5 are left out.",
        log_y=_spans_decades(list(series)),
    )


def _points(found: Positions) -> tuple[tuple[float, ...], tuple[float | None, ...]]:
    enough = [p for p, n in enumerate(found.count) if n >= 5]
    return tuple(float(p) for p in enough), tuple(float(found.mean[p]) for p in enough)


def _histogram(result: Result) -> Figure:
    counts = {name: found for name, found in result.histogram.items() if found.sum()}
    edges = (LOG_EDGES[0] - 1, *LOG_EDGES, LOG_EDGES[-1] + 1)
    shares = tuple(
        (name, tuple(float(c) / float(found.sum()) for c in found)) for name, found in counts.items()
    )
    return Figure(
        "sizes",
        "How the change is spread over tokens",
        Histogram(tuple(float(e) for e in edges), shares),
        "log10 of the token's KL(tuned‖base), nats",
        "share of tokens",
        "A narrow change is a few tokens far to the right; a general drift is a whole hump that moved.",
    )
