"""Tables of a page about a dictionary's latents, and cells of them, alike in all methods that train one.

Latents go by number and tags are yes or no: where texts are restricted, a cell of words in a table of all slices is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.dictionaries.findings import CONSTANT_PART, TOGETHER, Findings
from finetrace.dictionaries.words import joined, most, reaches

__all__ = [
    "frequencies_table",
    "legend",
    "moved_table",
    "null_latents_table",
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


def legend(constant: str) -> str:
    """What stands in a latent's place that is none. constant: what the method calls its constant part."""
    return f"latent {CONSTANT_PART}: the {constant}."


def tokens_table(result: Findings, nulls: Sequence[Findings], constant: str, what: str) -> Table:
    """what: which direction of a latent is read, as the subject of the note's first sentence."""
    theirs, data = most(nulls), result.words.data
    places = [
        (int(data["latent"][i]), 1 if data["sign"][i] == "promoted" else -1, int(data["token_id"][i]))
        for i in range(len(result.words))
    ]
    tuned = {place for i, place in enumerate(places) if data["head"][i] == "tuned"}
    rows: list[tuple[Cell, ...]] = []
    for i, (latent, sign, token) in enumerate(places):
        if data["head"][i] != "base" or latent == TOGETHER:
            continue
        beside = None
        if theirs is not None and sign > 0:
            beside = float(theirs[np.searchsorted(result.token_ids, token)])
        word: tuple[Cell, ...] = (str(data["token"][i]), token, float(data["logit"][i]))
        rows.append((latent, sign, *word, beside, places[i] in tuned))
    columns = ("latent", "sign", "token", "token_id", "logit", "nulls", "tuned_head")
    note = (
        f"{what} through the base's final norm and head, centred, at a root mean square of 1. {legend(constant)} sign: 1 what it "
        "makes likelier, -1 less likely. nulls: the largest logit that a "
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


def nulls_table(nulls: Sequence[Findings], keys: Sequence[str]) -> Table:
    """Each null's figures."""
    rows = [(i + 1, *(plain(null.numbers[key].value) for key in keys)) for i, null in enumerate(nulls)]
    return Table("nulls", "The nulls", ("null", *keys), tuple(rows), "Each null has a dictionary of its own.")


def null_latents_table(nulls: Sequence[Findings], constant: str) -> Table:
    """What each null's latents say: all together, the constant part, and its first latents."""
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        parts = [TOGETHER, CONSTANT_PART, *null.shown.tolist()] if len(null.words) else []
        rows += [(number + 1, latent, joined(null.words, latent)) for latent in parts[: 2 + _PARTS]]
    note = f"Each null has a dictionary of its own. {legend(constant)} {TOGETHER}: all together."
    return Table("null_latents", "The nulls' own latents", ("null", "latent", "tokens_up"), tuple(rows), note)


def frequencies_table(result: Findings) -> Table:
    """Where the shown latents fire: one row a latent, one column a slice."""
    data, start = result.latents.data, "frequency in "
    names = [one for one in data if one.startswith(start)]
    rows = [
        (latent, *(plain(float(data[name][latent])) for name in names)) for latent in result.shown.tolist()
    ]
    columns = ("latent", *(name.removeprefix(start) for name in names))
    note = "Share of tokens in which it fires, over all texts of the slice."
    return Table("frequencies", "Latents by slice", columns, tuple(rows), note)


def slices_table(result: Findings, keys: Sequence[str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in result.slices.items():
        first = figures[keys[0]]
        rest = (figures[key].value for key in keys[1:])
        rows.append((name, first.value, first.low, first.high, *rest, first.n, first.clusters))
    columns = ("slice", keys[0], "low", "high", *keys[1:], "counted", "n_texts")
    note = f"Held-out texts alone; low, high: a 95% interval over texts of {keys[0]}."
    return Table("slices", "By slice", columns, tuple(rows), note)


def training_table(result: Findings) -> Table:
    """One row: what is counted stands in the columns' names, which stay where words are hidden."""
    fitted = result.fitted
    if fitted is None:
        return Table("training", "How the dictionary was trained", ("tokens_trained_on",), ())
    told: dict[str, Cell] = {
        "tokens_trained_on": result.rows,
        "tokens_held_out": result.held,
        "latents": fitted.latents,
        "never_fire": int(np.asarray(result.latents.data["dead"]).sum()),
        "k": fitted.k,
        "batch": fitted.batch,
        "steps": fitted.steps,
        "readings": fitted.epochs,
        "stopped_early": fitted.stopped is not None,
    }
    note = "never_fire: latents that fire on no text. k: codes a token that were asked for. batch: tokens a step. readings: of all tokens."
    if "owner" in result.latents.data:
        told["one_model_only"] = int((np.asarray(result.latents.data["owner"]) != 0).sum())
        note += " one_model_only: latents of one model by design."
    if fitted.stopped is not None:
        note += f" Stopped early: {fitted.stopped}."
    return Table("training", "How the dictionary was trained", tuple(told), (tuple(told.values()),), note)
