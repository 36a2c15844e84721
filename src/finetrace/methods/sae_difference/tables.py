"""The page's tables: the latents and their words beside the nulls', slices, and the training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.core.result import Columns
from finetrace.methods.sae_difference import KEYS
from finetrace.methods.sae_difference.ranking import most
from finetrace.methods.sae_difference.result import CONSTANT_PART, Result

_WORDS, _SAID = 8, 3


def plain(value: float | np.floating | None) -> float | None:
    """None for what is not a number: no data is never 0."""
    return float(value) if value is not None and np.isfinite(value) else None


def energies(result: Result) -> np.ndarray:
    """Cumulative share of the latents' energy, largest first, of those that have any."""
    if "energy" not in result.latents.data:
        return np.zeros(0)
    found = np.sort(np.nan_to_num(np.asarray(result.latents.data["energy"])))[::-1]
    found = found[found > 0]
    return found.cumsum() / found.sum() if len(found) else found


def promoted(words: Columns, latent: int, count: int) -> list[str]:
    """The first words of a latent through the base's head."""
    data = words.data
    return [
        str(data["token"][i])
        for i in range(len(words))
        if data["latent"][i] == latent
        and data["head"][i] == "base"
        and data["sign"][i] == "promoted"
        and int(data["rank"][i]) <= count
    ]


def joined(words: Columns, latent: int) -> str:
    return " · ".join(text.strip() or repr(text) for text in promoted(words, latent, _WORDS))


def said(result: Result) -> str:
    """A few words, quoted: the first of each of the shown latents, or those of the constant part alone."""
    parts = result.shown.tolist() or [CONSTANT_PART]
    each = _SAID if len(parts) > 1 else 2 * _SAID
    found = dict.fromkeys(
        word.strip() or word for latent in parts[:_SAID] for word in promoted(result.words, latent, each)
    )
    return ", ".join(f"“{word}”" for word in found) or "nothing that can be read"


_FIGURES = (
    "frequency",
    "frequency_low",
    "frequency_high",
    "mean_code",
    "largest_code",
    "active_texts",
    "beta_activation_less_bias_base",
    "beta_activation_less_bias_tuned",
    "beta_error_difference",
)


def latents_table(result: Result, nulls: Sequence[Result]) -> Table:
    """The constant part, then the shown latents."""
    data, total = result.latents.data, 0.0
    rows: list[tuple[Cell, ...]] = []
    if "energy" in data:
        total = float(np.nan_to_num(np.asarray(data["energy"])).sum())
    for latent in (CONSTANT_PART, *result.shown.tolist()):
        figures: list[Cell] = [None] * (1 + len(_FIGURES))
        if latent != CONSTANT_PART:
            energy = float(np.asarray(data["energy"])[latent])
            figures = [energy / total if total > 0 else None]
            figures += [plain(float(data[name][latent])) if name in data else None for name in _FIGURES]
        rows.append((latent, *figures, _nulls_say(result, nulls, latent), joined(result.words, latent)))
    columns = (
        "latent", "energy_share", "frequency", "frequency_low", "frequency_high", "mean_code", "largest_code",
        "active_texts", "scale_base", "scale_tuned", "scale_error", "nulls_say", "tokens_up",
    )  # fmt: skip
    note = (
        "latent -1 is the constant part, what is written at every token. energy_share: of the latents' mean squared contribution. frequency: share of tokens in which it fires, with a 95% interval "
        "over texts. scale_base, scale_tuned: how much of the latent's direction the model's own states hold where it fires, less "
        "their mean, in units of the code (tuned less base is about 1); a large scale_base says that the base holds it too and the "
        "fine-tune made it stronger. scale_error: how much of it the dictionary leaves undone. nulls_say: the share of its words "
        "that a null's latents say as loudly."
    )
    return Table("latents", f"Latents at layer {result.layer}", columns, tuple(rows), note)


def _nulls_say(result: Result, nulls: Sequence[Result], latent: int) -> float | None:
    theirs, data = most(nulls), result.words.data
    chosen = [
        i
        for i in range(len(result.words))
        if data["latent"][i] == latent and data["head"][i] == "base" and data["sign"][i] == "promoted"
    ]
    if theirs is None or not chosen:
        return None
    at = np.searchsorted(result.token_ids, np.asarray(data["token_id"])[chosen])
    return float((theirs[at] >= np.asarray(data["logit"])[chosen]).mean())


def tokens_table(result: Result, nulls: Sequence[Result]) -> Table:
    theirs, data = most(nulls), result.words.data
    heads: dict[tuple[int, str], set[int]] = {}
    for i in range(len(result.words)):
        if data["head"][i] == "tuned":
            heads.setdefault((int(data["latent"][i]), str(data["sign"][i])), set()).add(
                int(data["token_id"][i])
            )
    rows: list[tuple[Cell, ...]] = []
    for i in range(len(result.words)):
        if data["head"][i] != "base":
            continue
        latent, sign, token = int(data["latent"][i]), str(data["sign"][i]), int(data["token_id"][i])
        beside = None if theirs is None else float(theirs[np.searchsorted(result.token_ids, token)])
        also = token in heads.get((latent, sign), set())
        words: tuple[Cell, ...] = (str(data["token"][i]), token, float(data["logit"][i]))
        rows.append((latent, sign, *words, beside if sign == "promoted" else None, also))
    columns = ("latent", "sign", "token", "token_id", "logit", "nulls", "tuned_head")
    note = (
        "Each direction through the base's final norm and head, centred, at a root mean square of 1. nulls: the largest logit that a "
        f"shown latent, or the constant part, of {len(nulls)} nulls gives the token. tuned_head: whether the tuned model's own norm "
        "and head have it among their first too."
    )
    return Table("tokens", "Words of the latents", columns, tuple(rows), note)


def nulls_table(nulls: Sequence[Result]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for number, null in enumerate(nulls):
        figures = [plain(null.numbers[key].value) for key, _ in KEYS]
        parts = [CONSTANT_PART, *null.shown.tolist()] if len(null.words) else []
        for latent in parts[: 1 + _SAID]:
            rows.append((number + 1, *figures, latent, joined(null.words, latent)))
    columns = ("null", *(key for key, _ in KEYS), "latent", "tokens_up")
    return Table(
        "null_latents",
        "The nulls' own latents",
        columns,
        tuple(rows),
        "Each null has a dictionary of its own.",
    )


def frequencies_table(result: Result) -> Table:
    """Where the shown latents fire."""
    data, start = result.latents.data, "frequency in "
    rows: list[tuple[Cell, ...]] = []
    for latent in result.shown.tolist():
        for name in (one for one in data if one.startswith(start)):
            rows.append((name.removeprefix(start), latent, plain(float(data[name][latent]))))
    columns = ("slice", "latent", "frequency")
    return Table("frequencies", "Latents by slice", columns, tuple(rows), "Share of tokens, over all texts.")


def slices_table(result: Result) -> Table:
    keys, rows = [key for key, _ in KEYS], []
    for name, figures in result.slices.items():
        first = figures[keys[0]]
        rows.append(
            (name, *(figures[key].value for key in keys), first.low, first.high, first.n, first.clusters)
        )
    columns = ("slice", *keys, "low", "high", "counted", "n_texts")
    note = f"Held-out texts alone; low, high: a 95% interval over texts of {keys[0]}."
    return Table("slices", "By slice", columns, tuple(rows), note)


def training_table(result: Result) -> Table:
    fitted = result.fitted
    rows: tuple[tuple[Cell, ...], ...] = ()
    if fitted is not None:
        silent = int(np.asarray(result.latents.data["dead"]).sum())
        sizes = (fitted.latents, silent, fitted.k, fitted.batch, fitted.steps, fitted.epochs)
        rows = ((result.rows, result.held, *sizes, fitted.stopped is not None),)
    columns = (
        "trained_on", "held_out", "latents", "never_fire", "codes_asked", "batch", "steps", "readings", "stopped_early",
    )  # fmt: skip
    note = "trained_on, held_out, batch: tokens. never_fire: on all texts. stopped_early: held-out tokens gained nothing more."
    return Table("training", "How the dictionary was trained", columns, rows, note)
