"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetrace.core.page import Block, Number, Page, Warning
from finetrace.dictionaries.findings import IDENTICAL, why
from finetrace.dictionaries.labelled import labels_table, labels_warnings
from finetrace.dictionaries.page import beside, learning, passages, silence, warnings
from finetrace.dictionaries.tables import (
    frequencies_table,
    moved_table,
    null_latents_table,
    nulls_table,
    slices_table,
    tokens_table,
    training_table,
)
from finetrace.dictionaries.words import said
from finetrace.methods.crosscoder import KEYS
from finetrace.methods.crosscoder.plots import norms, scaling
from finetrace.methods.crosscoder.result import Result
from finetrace.methods.crosscoder.tables import CONSTANT_NAME, latents_table, tags_table

LABELS = {
    "explained_change": (
        "Change that the latents account for",
        "What of the change lies along what the dictionary says it is, squared, over the base's variance; held-out texts.",
    ),
    "explained_share": (
        "Share of the change given back",
        "Of the change's squared norm on held-out texts, how much the dictionary gives back; below 0, it makes it worse.",
    ),
    "latents_share": ("Share of the latents", "The same, of what is left beside the mean change."),
    "tuned_only_share": (
        "Energy of confirmed tuned-only latents",
        "Of all that latents write to the tuned model: the share of those that latent scaling says the base does not have.",
    ),
    "base_share": ("Base given back", "Of the base's variance on held-out texts."),
    "tuned_share": ("Tuned model given back", "Of the tuned model's variance on held-out texts."),
    "codes_per_token": ("Codes a token", "Latents that fire at a held-out token."),
}
_POOR = 0.5
_READ = "What a latent writes to the tuned model less what it writes to the base,"
_LOOKED_AT = {"base": "base", "tuned": "tuned", "difference": "tuned less base"}


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, whose the latents are, the latents with their words beside the nulls', the training, and the texts. nulls: the
    same method's results on harmless fine-tunes of the same base, each with a dictionary of its own."""
    keys = [key for key, _ in KEYS]
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in keys]
    blocks += [Warning(text) for text in (*warnings(result), *_poor(result))]
    blocks += [Warning(text) for text in labels_warnings(result.labels)]
    if len(result.words):
        blocks.append(moved_table(result, nulls, CONSTANT_NAME))
    if result.fitted is not None:
        blocks += [tags_table(result, nulls), latents_table(result, nulls)]
    if result.labels is not None:
        blocks.append(labels_table(result.labels))
    if len(result.words):
        blocks.append(tokens_table(result, nulls, CONSTANT_NAME, _READ))
    if nulls:
        blocks += [nulls_table(nulls, keys), null_latents_table(nulls, CONSTANT_NAME)]
    if result.fitted is not None:
        blocks += [norms(result, nulls), scaling(result), frequencies_table(result)]
    blocks.append(slices_table(result, keys))
    if result.fitted is not None:
        blocks += [training_table(result), learning(result, _LOOKED_AT)]
    return Page("Crosscoder", _summary(result, nulls), (*blocks, *passages(result)))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    if (none := why(result.reason, result.rows)) is not None:
        return none.short
    if result.reason == IDENTICAL:
        return "The two models' hidden states are the same: all that one holds is shared, and no crosscoder was trained."
    value, share = (result.numbers[key].value for key in ("explained_change", "explained_share"))
    if value is None or share is None:
        return "No text was held out, so that there are no figures: give more texts."
    tagged, confirmed, shrunk = (result.tags[name] for name in ("tuned-only", "confirmed", "shrunk"))
    still = tagged - confirmed - shrunk
    return (
        f"At layer {result.layer}, the change that the latents account for is {value:.3g} of the base's variance"
        f"{beside(nulls, 'explained_change')}. Of {tagged} latents that look like the tuned model's alone, latent scaling confirms "
        f"{confirmed}, refutes {shrunk} and leaves {still} open. Together the latents push up {said(result)}.{silence(nulls)}"
    )


def _poor(result: Result) -> Iterator[str]:
    for side in ("base", "tuned"):
        given = result.numbers[f"{side}_share"].value
        if given is not None and given < _POOR:
            yield (
                f"The dictionary gives back {given:.0%} of the {side} model's variance: what it says of single latents is rough. "
                "More texts, more codes a token (k), or more latents."
            )
