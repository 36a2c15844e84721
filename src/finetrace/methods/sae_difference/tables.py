"""The page's own tables and figures: the latents beside the nulls', and how many of them hold the change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.core.page import Cell, Figure, Line, Series, Table
from finetrace.dictionaries.findings import CONSTANT_PART
from finetrace.dictionaries.tables import legend, plain
from finetrace.dictionaries.words import joined, nulls_say
from finetrace.methods.sae_difference.result import Result

CONSTANT_NAME = "constant part"


def energies(result: Result) -> np.ndarray:
    """Cumulative share of the latents' energy, largest first, of those that have any."""
    if "energy" not in result.latents.data:
        return np.zeros(0)
    found = np.sort(np.nan_to_num(np.asarray(result.latents.data["energy"])))[::-1]
    found = found[found > 0]
    return found.cumsum() / found.sum() if len(found) else found


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
        words = (joined(result.words, latent), nulls_say(result, nulls, latent))
        rows.append((latent, *words, *figures))
    columns = (
        "latent", "tokens_up", "nulls_say", "energy_share", "frequency", "frequency_low", "frequency_high", "mean_code",
        "largest_code", "n_texts", "scale_base", "scale_tuned", "scale_error",
    )  # fmt: skip
    note = (
        f"{legend(CONSTANT_NAME)} It is written at every token. nulls_say: the share of its words that a null's latents say as "
        "loudly. energy_share: of the latents' mean squared contribution. frequency: share "
        "of tokens in which it fires, with a 95% interval over texts. n_texts: in which it fires. scale_base, scale_tuned: how much of the latent's direction the model's own states hold where it fires, less "
        "their mean, in units of the code (tuned less base is about 1); a large scale_base says that the base holds it too and the "
        "fine-tune made it stronger. scale_error: how much of it the dictionary leaves undone."
    )
    return Table("latents", f"Latents at layer {result.layer}", columns, tuple(rows), note)


def spread(result: Result, nulls: Sequence[Result]) -> Figure:
    series, own = [], energies(result)
    if len(own):
        series.append(Series("pair", _counted(own), _values(own)))
    theirs = [parts for null in nulls if len(parts := energies(null))]
    if theirs:
        # Beyond its last latent a null's share stays 1.
        wide = max(len(parts) for parts in theirs)
        rows = np.stack([np.pad(parts, (0, wide - len(parts)), constant_values=1.0) for parts in theirs])
        bounds = _values(rows.min(0)), _values(rows.max(0))
        series.append(Series(f"{len(rows)} nulls", _counted(rows[0]), _values(np.median(rows, 0)), *bounds))
    return Figure(
        "spread",
        "How few latents hold the change",
        Line(tuple(series)),
        "latents, the largest first",
        "share of the latents' energy",
        "Cumulative, over all texts. Band: from the smallest to the largest null, around the median. A narrow change is in few latents; a general drift is spread over all.",
    )


def _counted(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(i + 1) for i in range(len(values)))


def _values(values: np.ndarray) -> tuple[float | None, ...]:
    return tuple(plain(value) for value in values)
