"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

from finetrace.core.page import Block, Number, Page, Warning
from finetrace.dictionaries.findings import CONSTANT, IDENTICAL, why
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
from finetrace.methods.sae_difference import KEYS
from finetrace.methods.sae_difference.result import Result
from finetrace.methods.sae_difference.tables import CONSTANT_NAME, latents_table, spread

LABELS = {
    "explained_change": (
        "Change that the dictionary finds",
        "Of each token's change, the part along what the dictionary writes there; its mean square on held-out texts, over the base's variance.",
    ),
    "explained_share": (
        "Share given back",
        "Of the change's squared norm on held-out texts, how much the dictionary gives back.",
    ),
    "latents_share": (
        "Share of the latents",
        "The same, of what is left beside the part that is the same at every token.",
    ),
    "codes_per_token": ("Codes a token", "Latents that fire at a held-out token."),
}


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, then the latents with their words beside the nulls', how the change is spread over them, the training, and the
    texts. nulls: the same method's results on harmless fine-tunes of the same base, each with a dictionary of its own."""
    keys = [key for key, _ in KEYS]
    blocks: list[Block] = [Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key in keys]
    blocks += [Warning(text) for text in (*warnings(result), *labels_warnings(result.labels))]
    if len(result.words):
        blocks += [moved_table(result, nulls, CONSTANT_NAME), latents_table(result, nulls)]
        blocks.append(tokens_table(result, nulls, CONSTANT_NAME, "Each direction"))
    if result.labels is not None:
        blocks.append(labels_table(result.labels))
    if nulls:
        blocks += [nulls_table(nulls, keys), null_latents_table(nulls, CONSTANT_NAME)]
    if result.fitted is not None:
        blocks += [spread(result, nulls), frequencies_table(result)]
    blocks.append(slices_table(result, keys))
    if result.fitted is not None:
        blocks += [training_table(result), learning(result, {"unexplained": "held-out tokens"})]
    return Page("SAE of the change", _summary(result, nulls), (*blocks, *passages(result)))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    value, share = (result.numbers[key].value for key in ("explained_change", "explained_share"))
    if (none := why(result.reason, result.rows)) is not None:
        return none.short
    if result.reason == IDENTICAL:
        return "The two models' hidden states are the same: there is nothing to train a dictionary on."
    if result.reason == CONSTANT:
        return f"The hidden states changed alike at every token: there is one direction and no dictionary. It says {said(result)}."
    if value is None or share is None:
        return "No text was held out, so that there are no figures: give more texts."
    return (
        f"At layer {result.layer}, the change that the dictionary finds is {value:.3g} of the base's variance"
        f"{beside(nulls, 'explained_change')}; it gives back {share:.0%} of the change on held-out texts. Together "
        f"its parts push up {said(result)}.{silence(nulls)}"
    )
