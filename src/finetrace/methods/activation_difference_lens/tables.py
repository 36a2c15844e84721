"""The page's tables: tokens beside the nulls, layer by layer, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from finetrace.core.page import Cell, Table
from finetrace.methods.activation_difference_lens.numbers import KEYS, plain
from finetrace.methods.activation_difference_lens.ranking import logits, z_nulls
from finetrace.methods.activation_difference_lens.result import Found, Result

_SHOWN = 12


def where(result: Result) -> str:
    return f"layer {result.layer}, position {result.position}"


def named(result: Result, name: str | None) -> Found:
    """A slice's, or with None that of all slices."""
    return result.everywhere if name is None else result.found[name]


def tokens_table(result: Result, nulls: Sequence[Result], name: str | None, promoted: bool) -> Table | None:
    """Promoted or suppressed tokens of a slice, or with None of all slices; None where nothing was read."""
    found = named(result, name)
    if found.fixed is None:
        return None
    rows = (found.fixed.promoted if promoted else found.fixed.suppressed).data
    theirs = [named(null, name) for null in nulls]
    read = [logits(other, null) for other, null in zip(theirs, nulls, strict=True)]
    z = z_nulls(logits(found, result), read)
    at = np.searchsorted(result.token_ids, rows["token_id"])
    columns = ("token", "token_id", "logit", "z_noise", "z_nulls", "other_rank")
    cells = tuple(
        (
            rows["token"][i],
            int(rows["token_id"][i]),
            float(rows["logit"][i]),
            plain(float(rows["z_noise"][i])),
            None if z is None else plain(float(z[at[i]])),
            int(rows["other_rank"][i]),
        )
        for i in range(len(at))
    )
    key = "promoted" if promoted else "suppressed"
    title = f"{key.capitalize()} tokens, " + ("all slices together" if name is None else f"slice {name}")
    note = (
        f"Mean difference of {found.fixed.texts} texts at {where(result)} through the base's final norm and head. logit: "
        "centred; z_noise: over its error when a group of texts is left out; other_rank: place in the order of the tuned "
        "model's own norm and head."
    )
    k = sum(one is not None for one in read)
    note += f" z_nulls: as one more draw beside {k} nulls." if z is not None else " No nulls to compare with."
    return Table(key if name is None else f"{key}_{name}", title, columns, cells, note)


def layers_table(result: Result) -> Table | None:
    found = result.everywhere
    if not len(found.logits):
        return None
    profile, rows = found.profile, []
    for layer in result.layers_read.tolist():
        share = profile.norm[0, layer] / profile.base_norm[0, layer]
        chosen = np.flatnonzero(np.asarray(found.layers.data["layer"]) == layer)
        rows.append(
            (
                layer,
                plain(share),
                plain(profile.snr[0, layer]),
                plain(profile.cosine[0, layer]),
                _joined([found.layers.data["token"][i] for i in chosen]),
            )
        )
    note = f"All slices together, at position {result.position}: what is promoted, read at each layer."
    columns = ("layer", "difference_norm", "snr", "split_half_cosine", "tokens")
    return Table("layers", "Layer by layer", columns, tuple(rows), note)


def slices_table(result: Result) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, figures in result.slices.items():
        first, profile = figures["difference_norm"], result.found[name].profile
        p = plain(profile.flip_p[0, result.layer]) if is_measured(result, name) else None
        row = (name, *(figures[key].value for key in KEYS), first.low, first.high, p, first.n, first.clusters)
        rows.append(row)
    columns = ("slice", *KEYS, "norm_low", "norm_high", "sign_flip_p", "tokens", "texts")
    note = (
        f"At {where(result)}; 95% intervals over texts. sign_flip_p: how often random signs on the texts give as much "
        "signal to noise."
    )
    return Table("slices", "By slice", columns, tuple(rows), note)


def is_measured(result: Result, name: str | None) -> bool:
    """Whether any text reached the configured place."""
    return result.position in named(result, name).profile.places[:1]


def picked_table(result: Result) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in (None, *result.found):
        pick = named(result, name).pick
        if pick is not None:
            words = "" if pick.reading is None else _joined(pick.reading.promoted.data["token"])
            row = (pick.place, pick.layer, pick.picked_on, pick.snr, pick.flip_p, pick.norm, words)
            rows.append((name or "all slices", *row))
    columns = ("slice", "position", "layer", "snr_picking", "snr", "sign_flip_p", "difference_norm", "tokens")
    note = (
        "The layer and position of the largest signal to noise on one half of the texts (snr_picking); all else is of the "
        "other half, which the choice has not flattered. Where a change is known best is not where it says most."
    )
    return Table("picked", "Where the difference is clearest", columns, tuple(rows), note)


def states_table(result: Result) -> Table:
    rows = [
        (name or "all slices", _joined(fixed.base.data["token"]), _joined(fixed.tuned.data["token"]))
        for name in (None, *result.found)
        if (fixed := named(result, name).fixed) is not None
    ]
    note = f"Top tokens of the mean state at {where(result)}, each through its own model's norm and head."
    return Table("states", "The two models' mean states", ("slice", "base", "tuned"), tuple(rows), note)


def token_tables(result: Result, nulls: Sequence[Result], names: Sequence[str | None]) -> Iterator[Table]:
    for name in names:
        for promoted in (True, False):
            table = tokens_table(result, nulls, name, promoted)
            if table is not None:
                yield table


def _joined(tokens: Sequence[str] | np.ndarray) -> str:
    return " · ".join(str(token).strip() or repr(str(token)) for token in list(tokens)[:_SHOWN])
