"""The page's tables: the latents, what latent scaling says of them, their words beside the nulls', slices, and the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.core.result import Columns
from finetrace.methods.crosscoder import KEYS
from finetrace.methods.crosscoder.ranking import most
from finetrace.methods.crosscoder.result import CONSTANT_PART, TAGS, Result

_WORDS, _SAID = 8, 3


def plain(value: float | np.floating | None) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if value is not None and np.isfinite(value) else None


def called(latent: int) -> str:
    return "mean change" if latent == CONSTANT_PART else f"latent {latent}"


def promoted(words: Columns, latent: int, count: int) -> list[str]:
    """The first words of a latent through the base's head."""
    data = words.data
    return [
        str(data["token"][i])
        for i in range(len(words))
        if (data["latent"][i], data["head"][i], data["sign"][i]) == (latent, "base", "promoted")
        and int(data["rank"][i]) <= count
    ]


def joined(words: Columns, latent: int) -> str:
    return " · ".join(text.strip() or repr(text) for text in promoted(words, latent, _WORDS))


def said(result: Result) -> str:
    """A few words, quoted: the first of each of the shown latents, or those of the mean change alone."""
    parts = result.shown.tolist() or [CONSTANT_PART]
    each = _SAID if len(parts) > 1 else 2 * _SAID
    found = dict.fromkeys(
        word.strip() or word for latent in parts[:_SAID] for word in promoted(result.words, latent, each)
    )
    return ", ".join(f"“{word}”" for word in found) or "nothing that can be read"


def tags_table(result: Result, nulls: Sequence[Result]) -> Table:
    """Live latents by tag, the pair's and then each null's."""
    names = (*TAGS, "confirmed", "shrunk")
    rows = [(i, *(one.tags.get(name, 0) for name in names)) for i, one in enumerate((result, *nulls))]
    columns = ("null", *(name.replace("-", "_") for name in names))
    note = (
        "null 0 is the pair itself. Latents that fire at all, by how long their two decoders are (tuned-only: the base's is at "
        "most a fifth of the tuned model's). confirmed: tuned-only, and the base's states hold less than half of it in the error "
        "and in the reconstruction alike, by the whole interval. shrunk: tagged tuned-only, but the base surely holds more than "
        "half of it: an artefact of training."
    )
    return Table("tags", "Whose the latents are", columns, tuple(rows), note)


_FIGURES = (
    "norm_difference",
    "decoder_cosine",
    "frequency",
    "frequency_low",
    "frequency_high",
    "active_texts",
    "ratio_error_along_tuned",
    "ratio_error_along_tuned_low",
    "ratio_error_along_tuned_high",
    "ratio_reconstruction_along_tuned",
    "ratio_reconstruction_along_tuned_low",
    "ratio_reconstruction_along_tuned_high",
    "q",
)
_COLUMNS = (
    "norm_difference", "cosine", "frequency", "frequency_low", "frequency_high", "active_in",
    "nu_error", "nu_error_low", "nu_error_high", "nu_reconstruction", "nu_reconstruction_low", "nu_reconstruction_high", "q",
)  # fmt: skip


def latents_table(result: Result, nulls: Sequence[Result]) -> Table:
    """The shown latents, best first."""
    data = result.latents.data
    rows: list[tuple[Cell, ...]] = []
    for latent in result.shown.tolist():
        standing = next((name for name in ("confirmed", "shrunk") if data[name][latent]), "")
        figures = [plain(float(data[name][latent])) if name in data else None for name in _FIGURES]
        words = joined(result.words, latent)
        rows.append(
            (
                called(latent),
                str(data["tag"][latent]),
                standing,
                *figures,
                _nulls_say(result, nulls, latent),
                words,
            )
        )
    columns = ("latent", "tag", "standing", *_COLUMNS, "nulls_say", "tokens_up")
    note = (
        "norm_difference: 0 tuned only, 0.5 shared, 1 base only. cosine: between the two decoders. frequency: share of tokens. "
        "nu: how much of the latent the base holds, as a share of what the tuned model holds, in the error and in the "
        "reconstruction of held-out texts (0: none; 1: as much), with 95% intervals over texts. q: of 'both hold it alike', over "
        "all latents. nulls_say: the share of its words that a null's latents say as loudly."
    )
    return Table("latents", f"Latents at layer {result.layer}", columns, tuple(rows), note)


def _nulls_say(result: Result, nulls: Sequence[Result], latent: int) -> float | None:
    theirs, data = most(nulls), result.words.data
    chosen = [
        i
        for i in range(len(result.words))
        if (data["latent"][i], data["head"][i], data["sign"][i]) == (latent, "base", "promoted")
    ]
    if theirs is None or not chosen:
        return None
    at = np.searchsorted(result.token_ids, np.asarray(data["token_id"])[chosen])
    return float((theirs[at] >= np.asarray(data["logit"])[chosen]).mean())


def tokens_table(result: Result, nulls: Sequence[Result]) -> Table:
    theirs, data = most(nulls), result.words.data
    places = [
        (int(data["latent"][i]), str(data["sign"][i]), int(data["token_id"][i]))
        for i in range(len(result.words))
    ]
    tuned = {place for i, place in enumerate(places) if data["head"][i] == "tuned"}
    rows: list[tuple[Cell, ...]] = []
    for i, (latent, sign, token) in enumerate(places):
        if data["head"][i] != "base":
            continue
        beside = None
        if theirs is not None and sign == "promoted":
            beside = float(theirs[np.searchsorted(result.token_ids, token)])
        word: tuple[Cell, ...] = (str(data["token"][i]), token, float(data["logit"][i]))
        rows.append((called(latent), sign, *word, beside, places[i] in tuned))
    columns = ("latent", "sign", "token", "token_id", "logit", "nulls", "tuned_head")
    note = (
        "What a latent writes to the tuned model less what it writes to the base, through the base's final norm and head, centred, "
        f"at a root mean square of 1. nulls: the largest logit that a shown latent, or the mean change, of {len(nulls)} nulls gives "
        "the token. tuned_head: whether the tuned model's own norm and head have it among their first too."
    )
    return Table("tokens", "Words of the latents", columns, tuple(rows), note)


def nulls_table(nulls: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        figures = [null.numbers[key].value for key, _ in KEYS]
        parts = [CONSTANT_PART, *null.shown.tolist()] if len(null.words) else []
        for latent in parts[: 1 + _SAID]:
            tag = "" if latent == CONSTANT_PART else str(null.latents.data["tag"][latent])
            rows.append((number + 1, *figures, called(latent), tag, joined(null.words, latent)))
    columns = ("null", *(key for key, _ in KEYS), "latent", "tag", "tokens_up")
    note = "Each null has a dictionary of its own."
    return Table("null_latents", "The nulls' own latents", columns, tuple(rows), note)


def frequencies_table(result: Result) -> Table:
    """Where the shown latents fire."""
    data, start = result.latents.data, "frequency in "
    rows: list[tuple[Cell, ...]] = []
    for latent in result.shown.tolist():
        for name in (one for one in data if one.startswith(start)):
            rows.append((name.removeprefix(start), called(latent), plain(float(data[name][latent]))))
    note = "Share of tokens, over all texts."
    return Table("frequencies", "Latents by slice", ("slice", "latent", "frequency"), tuple(rows), note)


def slices_table(result: Result) -> Table:
    keys, rows = [key for key, _ in KEYS], []
    for name, figures in result.slices.items():
        first = figures[keys[0]]
        values = (figures[key].value for key in keys)
        rows.append((name, *values, first.low, first.high, first.n, first.clusters))
    columns = ("slice", *keys, "low", "high", "counted", "n_texts")
    note = f"Held-out texts alone; low, high: a 95% interval over texts of {keys[0]}."
    return Table("slices", "By slice", columns, tuple(rows), note)


def training_table(result: Result) -> Table:
    fitted = result.fitted
    rows: list[tuple[Cell, ...]] = []
    if fitted is not None:
        rows = [
            ("tokens trained on", result.rows),
            ("tokens held out", result.held),
            ("latents", fitted.latents),
            ("latents of one model only, by design", fitted.exclusive),
            ("latents that never fire", int(np.asarray(result.latents.data["dead"]).sum())),
            ("codes a token asked for", fitted.k),
            ("tokens a step", fitted.batch),
            ("steps", fitted.steps),
            ("readings of the tokens", fitted.epochs),
            ("stopped early", fitted.stopped or "no"),
        ]
    return Table("training", "How the dictionary was trained", ("what", "value"), tuple(rows))
