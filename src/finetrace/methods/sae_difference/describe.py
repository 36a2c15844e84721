"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Sequence

from finetrace.core.page import Block, Figure, Line, Number, Page, Passage, Series, Warning
from finetrace.methods.sae_difference import KEYS
from finetrace.methods.sae_difference.result import CONSTANT, FEW, IDENTICAL, Result
from finetrace.methods.sae_difference.tables import (
    energies,
    frequencies_table,
    latents_table,
    nulls_table,
    plain,
    said,
    slices_table,
    tokens_table,
    training_table,
)

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
FEW_TEXTS = 20


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, then the latents with their words beside the nulls', how the change is spread over them, the training, and the
    texts. nulls: the same method's results on harmless fine-tunes of the same base, each with a dictionary of its own."""
    blocks: list[Block] = [
        Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key, _ in KEYS
    ]
    blocks += [Warning(text) for text in warnings(result)]
    if len(result.words):
        blocks += [latents_table(result, nulls), tokens_table(result, nulls)]
    if nulls:
        blocks.append(nulls_table(nulls))
    if result.fitted is not None:
        blocks += [spread(result, nulls), frequencies_table(result)]
    blocks.append(slices_table(result))
    if result.fitted is not None:
        blocks += [training_table(result), learning(result)]
    return Page("SAE of the change", _summary(result, nulls), (*blocks, *passages(result)))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    value, share = (result.numbers[key].value for key in ("explained_change", "explained_share"))
    if result.reason == FEW:
        return f"Too few tokens to train a dictionary on: {result.rows}."
    if result.reason == IDENTICAL:
        return "The two models' hidden states are the same: there is nothing to train a dictionary on."
    if result.reason == CONSTANT:
        return f"The hidden states changed alike at every token: there is one direction and no dictionary. It says {said(result)}."
    if value is None or share is None:
        return "No text was held out, so that there are no figures: give more texts."
    known = [v for null in nulls if (v := null.numbers["explained_change"].value) is not None]
    beside = f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At layer {result.layer}, the change that the dictionary finds is {value:.3g} of the base's variance{beside}; it gives back "
        f"{share:.0%} of the change on held-out texts. Its parts say {said(result)}.{silent}"
    )


def warnings(result: Result) -> list[str]:
    found: list[str] = []
    if result.lost:
        found.append(
            f"{result.lost} tokens had states that are not finite and count nowhere: try --dtype float32."
        )
    if result.reason == FEW:
        found.append(
            f"{result.rows} tokens to train on are fewer than the dimensions: any direction would fit them, so that no dictionary "
            "was trained and there are no figures."
        )
    fitted, share = result.fitted, result.numbers["explained_share"].value
    if fitted is None:
        return found
    found += [f"Training: {text}" for text in fitted.warnings]
    if share is not None and share <= 0:
        found.append(
            "On held-out texts the dictionary makes the change no smaller: its latents are of the texts that it was trained on. More "
            "texts, or fewer latents."
        )
    if result.rows < 10 * fitted.latents:
        found.append(
            f"{result.rows} tokens trained {fitted.latents} latents: fewer than ten tokens each. Latents may be single texts."
        )
    few = [name for name, keys in result.slices.items() if keys["explained_change"].texts < FEW_TEXTS]
    if few:
        found.append(f"Fewer than {FEW_TEXTS} held-out texts on {', '.join(few)}: intervals are rough there.")
    return found


def spread(result: Result, nulls: Sequence[Result]) -> Figure:
    series = []
    for name, one in [("pair", result), *((f"null {i + 1}", null) for i, null in enumerate(nulls))]:
        parts = energies(one)
        if len(parts):
            series.append(
                Series(name, tuple(float(i + 1) for i in range(len(parts))), tuple(plain(v) for v in parts))
            )
    return Figure(
        "spread",
        "How few latents hold the change",
        Line(tuple(series)),
        "latents, the largest first",
        "share of the latents' energy",
        "Cumulative, over all texts. A narrow change is in few latents; a general drift is spread over all.",
    )


def learning(result: Result) -> Figure:
    checked = result.fitted.checked.data if result.fitted is not None else {"step": [], "unexplained": []}
    x = tuple(float(step) for step in checked["step"])
    y = tuple(plain(float(value)) for value in checked["unexplained"])
    return Figure(
        "learning",
        "Training",
        Line((Series("held-out tokens", x, y),)),
        "step",
        "unexplained share of variance",
        "Still falling at the end: more steps. Rising: more texts, or fewer latents.",
    )


def passages(result: Result) -> list[Passage]:
    return [
        Passage(
            title=f"latent {p.latent}, {p.bin}: {p.value:.3g} in {p.slice}, text {p.row}"
            + (f" (and {p.folded} like it)" if p.folded else ""),
            tokens=p.tokens,
            values=p.values,
            unit="code of the latent at this token",
            slice=p.slice,
        )
        for p in result.passages
    ]
