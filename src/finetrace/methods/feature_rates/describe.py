"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Block, Cell, Figure, Number, Page, Passage, Scatter, Series, Table, Warning
from finetrace.methods.feature_rates import KEYS
from finetrace.methods.feature_rates.result import Result

LABELS = {
    "turnover": (
        "Turnover of firings",
        "Of all firings in either model (a feature at a token), the share that one has alone.",
    ),
    "changed_share": (
        "Features whose rate changed",
        "Of those that fire at all, at the false discovery rate that was asked for.",
    ),
    "codes_base": ("Features a token, base", "How many fire."),
    "codes_tuned": ("Features a token, tuned", "How many fire."),
    "unexplained_base": (
        "Unexplained, base",
        "Squared distance of the states from what the SAE gives back, over that from its constant part.",
    ),
    "unexplained_tuned": ("Unexplained, tuned", "The same of the tuned model's states."),
}
FEW_TEXTS = 20
# Above this, an SAE does not read the states that it is given.
_STRANGE = 0.7
_WORDS, _POINTS = 8, 2000
_SIDES = {"base": "base's", "tuned": "tuned model's"}


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, then the features that changed beside what the nulls do to the same features. nulls: the same method's results on
    harmless fine-tunes of the same base."""
    blocks: list[Block] = [
        Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key, _ in KEYS
    ]
    blocks += [Warning(text) for text in warnings(result)]
    blocks += [features_table(result, nulls), tokens_table(result), scatter(result, nulls)]
    if nulls:
        blocks.append(nulls_table(result, nulls))
    blocks.append(slices_table(result))
    blocks += [
        Passage(
            title=f"feature {p.feature} in the {p.side}: {p.value:.3g} in {p.slice}, text {p.row}",
            tokens=p.tokens,
            values=p.values,
            unit="code of the feature at this token",
            slice=p.slice,
        )
        for p in result.passages
    ]
    return Page("Feature rates", _summary(result, nulls), tuple(blocks))


def changed(result: Result) -> np.ndarray:
    """Which of the features that fire changed their rate, [feature that fires]."""
    return np.nan_to_num(np.asarray(result.features.data["q"]), nan=1.0) <= result.q


def largest(result: Result, nulls: Sequence[Result]) -> np.ndarray | None:
    """The largest |difference| of any null, of each of the features that fire here; None without nulls. A feature that fires in
    neither model of a null did not change there."""
    if not nulls:
        return None
    ids = np.asarray(result.features.data["feature"])
    out = np.zeros(len(ids))
    for null in nulls:
        theirs = np.asarray(null.features.data["feature"])
        _, ours, at = np.intersect1d(ids, theirs, assume_unique=True, return_indices=True)
        out[ours] = np.maximum(out[ours], np.abs(np.asarray(null.features.data["difference"])[at]))
    return out


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    value, count = result.numbers["turnover"].value, int(changed(result).sum())
    n = len(result.features)
    if value is None:
        return (
            "No feature fires in either model: is this the layer, and the model, that the SAE was trained on?"
        )
    if value == 0:
        return f"All {n} features that fire do so at exactly the same tokens in both models."
    theirs = largest(result, nulls)
    beside = ""
    if theirs is not None:
        size = np.abs(np.asarray(result.features.data["difference"]))
        beside = f", {int((changed(result) & (size > theirs)).sum())} of them by more than in any of {len(nulls)} nulls"
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At layer {result.layer}, {count} of {n} features that fire do so more or less often than in the base (q {result.q:g})"
        f"{beside}; {value:.1%} of all firings are of one model alone.{silent}"
    )


def warnings(result: Result) -> list[str]:
    found: list[str] = []
    for side in ("base", "tuned"):
        value = result.numbers[f"unexplained_{side}"].value
        if value is not None and value > _STRANGE:
            found.append(
                f"The SAE leaves {value:.0%} of the {_SIDES[side]} states unexplained: it was trained on another model, layer or scale, "
                "and its features mean nothing here."
            )
    if result.lost:
        found.append(
            f"{result.lost} tokens had states that are not finite and count nowhere: try --dtype float32."
        )
    few = [name for name, keys in result.slices.items() if 0 < keys["turnover"].texts < FEW_TEXTS]
    if few:
        found.append(f"Fewer than {FEW_TEXTS} texts on {', '.join(few)}: intervals are rough there.")
    return found


def plain(value: float | np.floating) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if np.isfinite(value) else None


def features_table(result: Result, nulls: Sequence[Result]) -> Table:
    data, theirs = result.features.data, largest(result, nulls)
    names = ("base", "tuned", "difference", "low", "high", "ratio", "ratio_low", "ratio_high", "q", "code_q")
    rows: list[tuple[Cell, ...]] = []
    for feature in result.shown.tolist():
        at = int(np.searchsorted(np.asarray(data["feature"]), feature))
        figures = [plain(float(data[name][at])) for name in names]
        beside = None if theirs is None else float(theirs[at])
        # Beside the difference: what is to be compared is not to be scrolled to.
        figures.insert(3, beside)
        rows.append((feature, _joined(result, feature), *figures, int(data["in_texts"][at])))
    columns = (
        "feature",
        "tokens_up",
        "rate_base",
        "rate_tuned",
        "difference",
        "nulls",
        *names[3:],
        "n_texts",
    )
    note = (
        "Shares of tokens in which a feature fires. nulls: the largest difference, either way, of the same feature in any null. low, "
        "high: of the difference, 95%, paired over texts; ratio: tuned over base. q: of the rate, code_q: of the mean code, over all "
        "features that fire. n_texts: in which it fires."
    )
    return Table("features", "Features that changed most", columns, tuple(rows), note)


def _joined(result: Result, feature: int) -> str | None:
    data = result.words.data
    found = [
        str(data["token"][i])
        for i in range(len(result.words))
        if data["feature"][i] == feature and data["head"][i] == "base" and data["sign"][i] == "promoted"
    ]
    return " · ".join(text.strip() or repr(text) for text in found[:_WORDS]) or None


def tokens_table(result: Result) -> Table:
    data = result.words.data
    rows = tuple(
        (
            int(data["feature"][i]),
            1 if data["sign"][i] == "promoted" else -1,
            str(data["token"][i]),
            int(data["token_id"][i]),
            float(data["logit"][i]),
        )
        for i in range(len(result.words))
        if data["head"][i] == "base"
    )
    note = (
        "Each feature's decoder through the base's final norm and head, centred, at a root mean square of 1. sign: 1 what it "
        "makes likelier, -1 less likely."
    )
    return Table(
        "tokens", "Words of the features", ("feature", "sign", "token", "token_id", "logit"), rows, note
    )


def scatter(result: Result, nulls: Sequence[Result]) -> Figure:
    """The features that changed most, at most a few thousand."""
    series = [Series("pair", *_points([result], _POINTS))]
    if nulls:
        series.append(Series(f"{len(nulls)} nulls", *_points(nulls, _POINTS // len(nulls))))
    return Figure(
        "rates",
        "Rates in both models",
        Scatter(tuple(series)),
        "share of tokens, base",
        "share of tokens, tuned or null",
        "A point a feature, those of the largest differences. On the diagonal: as often as in the base.",
    )


def _points(results: Sequence[Result], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Rates in the base and in the other model, of the `count` features of each result that changed most."""
    x: list[float] = []
    y: list[float] = []
    for data in (one.features.data for one in results):
        order = np.argsort(-np.abs(np.asarray(data["difference"])), kind="stable")[:count]
        x += np.asarray(data["base"])[order].tolist()
        y += np.asarray(data["tuned"])[order].tolist()
    return tuple(x), tuple(y)


def nulls_table(result: Result, nulls: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        keys = [null.numbers[key].value for key, _ in KEYS]
        shared = len(np.intersect1d(null.shown, result.shown))
        rows.append((number + 1, *keys, int(changed(null).sum()), shared))
    columns = ("null", *(key for key, _ in KEYS), "changed", "among_shown")
    note = "among_shown: how many of the features that changed most there are among those that changed most here."
    return Table("nulls", "The nulls", columns, tuple(rows), note)


def slices_table(result: Result) -> Table:
    keys, rows = [key for key, _ in KEYS if key != "changed_share"], []
    for name, figures in result.slices.items():
        first = figures["turnover"]
        rest = (figures[key].value for key in keys[1:])
        rows.append((name, first.value, first.low, first.high, *rest, first.n, first.clusters))
    columns = ("slice", keys[0], "low", "high", *keys[1:], "counted", "n_texts")
    return Table(
        "slices", "By slice", columns, tuple(rows), "low, high: a 95% interval over texts of turnover."
    )
