"""The page's own tables: whose the latents are, and what latent scaling says of those that are shown."""

from __future__ import annotations

from collections.abc import Sequence

from finetrace.core.page import Cell, Table
from finetrace.dictionaries.tables import plain
from finetrace.dictionaries.words import joined, nulls_say
from finetrace.methods.crosscoder.result import TAGS, Result

CONSTANT_NAME = "mean change"


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
    "norm_difference", "cosine", "frequency", "frequency_low", "frequency_high", "n_texts",
    "nu_error", "nu_error_low", "nu_error_high", "nu_reconstruction", "nu_reconstruction_low", "nu_reconstruction_high", "q",
)  # fmt: skip


def latents_table(result: Result, nulls: Sequence[Result]) -> Table:
    """The shown latents, best first."""
    data = result.latents.data
    rows: list[tuple[Cell, ...]] = []
    for latent in result.shown.tolist():
        tag = str(data["tag"][latent])
        standing = (
            tag == "tuned-only",
            bool(data["confirmed"][latent]),
            bool(data["shrunk"][latent]),
            tag == "base-only",
        )
        figures = [plain(float(data[name][latent])) if name in data else None for name in _FIGURES]
        words = joined(result.words, latent)
        rows.append(
            (
                latent,
                words,
                nulls_say(result, nulls, latent),
                *standing,
                *figures,
            )
        )
    columns = (
        "latent", "tokens_up", "nulls_say", "tuned_only", "confirmed", "shrunk", "base_only", *_COLUMNS,
    )  # fmt: skip
    note = (
        "nulls_say: the share of its words that a null's latents say as loudly. tuned_only, confirmed, shrunk, base_only: see the "
        "table of tags. "
        "norm_difference: 0 tuned only, 0.5 shared, 1 base only. cosine: between the two decoders. frequency: share of tokens in which it fires; n_texts: in which it does. "
        "nu: how much of the latent the base holds, as a share of what the tuned model holds, in the error and in the "
        "reconstruction of held-out texts (0: none; 1: as much), with 95% intervals over texts. q: of 'both hold it alike', over "
        "all latents."
    )
    return Table("latents", f"Latents at layer {result.layer}", columns, tuple(rows), note)
