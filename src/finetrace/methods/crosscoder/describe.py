"""The Result as a Page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from finetrace.core.page import Block, Number, Page, Passage, Warning
from finetrace.methods.crosscoder import KEYS
from finetrace.methods.crosscoder.plots import learning, norms, scaling
from finetrace.methods.crosscoder.result import FEW, IDENTICAL, Result
from finetrace.methods.crosscoder.tables import (
    frequencies_table,
    latents_table,
    nulls_table,
    said,
    slices_table,
    tags_table,
    tokens_table,
    training_table,
)

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
FEW_TEXTS, FEW_TOKENS = 20, 10
_POOR = 0.5


def describe(result: Result, nulls: Sequence[Result] = ()) -> Page:
    """Figures, whose the latents are, the latents with their words beside the nulls', the training, and the texts. nulls: the
    same method's results on harmless fine-tunes of the same base, each with a dictionary of its own."""
    blocks: list[Block] = [
        Number(key, LABELS[key][0], result.numbers[key], LABELS[key][1]) for key, _ in KEYS
    ]
    blocks += [Warning(text) for text in warnings(result)]
    if result.fitted is not None:
        blocks += [tags_table(result, nulls), latents_table(result, nulls)]
    if len(result.words):
        blocks.append(tokens_table(result, nulls))
    if nulls:
        blocks.append(nulls_table(nulls))
    if result.fitted is not None:
        blocks += [norms(result, nulls), scaling(result), frequencies_table(result)]
    blocks.append(slices_table(result))
    if result.fitted is not None:
        blocks += [training_table(result), learning(result)]
    return Page("Crosscoder", _summary(result, nulls), (*blocks, *passages(result)))


def _summary(result: Result, nulls: Sequence[Result]) -> str:
    if result.reason == FEW:
        return f"Too few tokens to train a crosscoder on: {result.rows}."
    if result.reason == IDENTICAL:
        return "The two models' hidden states are the same: all that one holds is shared, and no crosscoder was trained."
    value, share = (result.numbers[key].value for key in ("explained_change", "explained_share"))
    if value is None or share is None:
        return "No text was held out, so that there are no figures: give more texts."
    known = [v for null in nulls if (v := null.numbers["explained_change"].value) is not None]
    beside = f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""
    tagged, confirmed, shrunk = (result.tags[name] for name in ("tuned-only", "confirmed", "shrunk"))
    silent = (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )
    return (
        f"At layer {result.layer}, the change that the latents account for is {value:.3g} of the base's variance{beside}. Of "
        f"{tagged} latents that look like the tuned model's alone, latent scaling confirms {confirmed} and refutes {shrunk}. The "
        f"latents shown say {said(result)}.{silent}"
    )


def warnings(result: Result) -> Iterator[str]:
    if result.lost:
        yield f"{result.lost} tokens had states that are not finite and count nowhere: try --dtype float32."
    if result.reason == FEW:
        yield (
            f"{result.rows} tokens to train on are fewer than the dimensions: any direction would fit them, so that no crosscoder "
            "was trained and there are no figures."
        )
    fitted, share = result.fitted, result.numbers["explained_share"].value
    if fitted is None:
        return
    yield from (f"Training: {text}" for text in fitted.warnings)
    if share is not None and share <= 0:
        yield (
            "On held-out texts the dictionary says no more of the change than nothing would: its latents are of the texts that "
            "it was trained on. More texts, a larger delta, or fewer latents."
        )
    for side in ("base", "tuned"):
        given = result.numbers[f"{side}_share"].value
        if given is not None and given < _POOR:
            yield (
                f"The dictionary gives back {given:.0%} of the {side} model's variance: what it says of single latents is rough. "
                "More texts, more codes a token (k), or more latents."
            )
    if result.rows < FEW_TOKENS * fitted.latents:
        yield (
            f"{result.rows} tokens trained {fitted.latents} latents: fewer than ten tokens each. Latents may be single texts."
        )
    few = [name for name, keys in result.slices.items() if keys["explained_change"].texts < FEW_TEXTS]
    if few:
        yield f"Fewer than {FEW_TEXTS} held-out texts on {', '.join(few)}: intervals are rough there."


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
