"""Tables of a page about a dictionary's latents, and cells of them, alike in all methods that train one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.dictionaries.findings import CONSTANT_PART, TOGETHER, Findings
from finetrace.dictionaries.words import joined, most, reaches

__all__ = [
    "called",
    "frequencies_table",
    "moved_table",
    "nulls_table",
    "plain",
    "slices_table",
    "tokens_table",
    "training_table",
]

_PARTS = 3


def plain(value: float | np.floating | None) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if value is not None and np.isfinite(value) else None


def called(latent: int, constant: str) -> str:
    """constant: what the method calls its constant part."""
    return {CONSTANT_PART: constant, TOGETHER: "all together"}.get(latent, f"latent {latent}")


def tokens_table(result: Findings, nulls: Sequence[Findings], constant: str, what: str) -> Table:
    """what: which direction of a latent is read, as the subject of the note's first sentence."""
    theirs, data = most(nulls), result.words.data
    places = [
        (int(data["latent"][i]), str(data["sign"][i]), int(data["token_id"][i]))
        for i in range(len(result.words))
    ]
    tuned = {place for i, place in enumerate(places) if data["head"][i] == "tuned"}
    rows: list[tuple[Cell, ...]] = []
    for i, (latent, sign, token) in enumerate(places):
        if data["head"][i] != "base" or latent == TOGETHER:
            continue
        beside = None
        if theirs is not None and sign == "promoted":
            beside = float(theirs[np.searchsorted(result.token_ids, token)])
        word: tuple[Cell, ...] = (str(data["token"][i]), token, float(data["logit"][i]))
        rows.append((called(latent, constant), sign, *word, beside, places[i] in tuned))
    columns = ("latent", "sign", "token", "token_id", "logit", "nulls", "tuned_head")
    note = (
        f"{what} through the base's final norm and head, centred, at a root mean square of 1. nulls: the largest logit that a "
        f"shown latent, or the {constant}, of {len(nulls)} nulls gives the token. tuned_head: whether the tuned model's own norm "
        "and head have it among their first too."
    )
    return Table("tokens", "Words of the latents", columns, tuple(rows), note)


def moved_table(result: Findings, nulls: Sequence[Findings], constant: str) -> Table:
    """The tokens that all latents and the constant part push up most together, beside the nulls' push."""
    theirs, data = reaches(nulls), result.words.data
    rows: list[tuple[Cell, ...]] = []
    for i in np.flatnonzero(np.asarray(data["latent"]) == TOGETHER).tolist():
        token = int(data["token_id"][i])
        beside = None if theirs is None else float(theirs[np.searchsorted(result.token_ids, token)])
        rows.append((str(data["token"][i]), token, float(data["logit"][i]), beside))
    note = (
        f"push: the root of the sum, over the {constant} and all latents, of (the token's logit through the base's head, where it is "
        f"above the mean of all tokens, times the usual strength)^2. nulls: the largest of {len(nulls)} nulls."
    )
    columns = ("token", "token_id", "push", "nulls")
    return Table("moved", "What all latents together push up most", columns, tuple(rows), note)


def nulls_table(nulls: Sequence[Findings], keys: Sequence[str], constant: str) -> Table:
    """Each null's figures, and its first latents."""
    tagged = any("tag" in null.latents.data for null in nulls)
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        figures = [plain(null.numbers[key].value) for key in keys]
        parts = [TOGETHER, CONSTANT_PART, *null.shown.tolist()] if len(null.words) else []
        for latent in parts[: 2 + _PARTS]:
            tag = "" if latent < 0 or not tagged else str(null.latents.data["tag"][latent])
            name = (called(latent, constant), tag) if tagged else (called(latent, constant),)
            rows.append((number + 1, *figures, *name, joined(null.words, latent)))
    columns = ("null", *keys, "latent", *(("tag",) if tagged else ()), "tokens_up")
    note = "Each null has a dictionary of its own."
    return Table("null_latents", "The nulls' own latents", columns, tuple(rows), note)


def frequencies_table(result: Findings, constant: str) -> Table:
    """Where the shown latents fire."""
    data, start = result.latents.data, "frequency in "
    rows: list[tuple[Cell, ...]] = []
    for latent in result.shown.tolist():
        for name in (one for one in data if one.startswith(start)):
            rows.append(
                (name.removeprefix(start), called(latent, constant), plain(float(data[name][latent])))
            )
    note = "Share of tokens, over all texts."
    return Table("frequencies", "Latents by slice", ("slice", "latent", "frequency"), tuple(rows), note)


def slices_table(result: Findings, keys: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in result.slices.items():
        first = figures[keys[0]]
        values = (figures[key].value for key in keys)
        rows.append((name, *values, first.low, first.high, first.n, first.clusters))
    columns = ("slice", *keys, "low", "high", "counted", "n_texts")
    note = f"Held-out texts alone; low, high: a 95% interval over texts of {keys[0]}."
    return Table("slices", "By slice", columns, tuple(rows), note)


def training_table(result: Findings) -> Table:
    fitted, rows = result.fitted, []
    if fitted is not None:
        rows = [
            ("tokens trained on", result.rows),
            ("tokens held out", result.held),
            ("latents", fitted.latents),
            ("latents that never fire", int(np.asarray(result.latents.data["dead"]).sum())),
            ("codes a token asked for", fitted.k),
            ("tokens a step", fitted.batch),
            ("steps", fitted.steps),
            ("readings of the tokens", fitted.epochs),
            ("stopped early", fitted.stopped or "no"),
        ]
        if "owner" in result.latents.data:
            own = int((np.asarray(result.latents.data["owner"]) != 0).sum())
            rows.insert(3, ("latents of one model only, by design", own))
    return Table("training", "How the dictionary was trained", ("what", "value"), tuple(rows))
