"""Parts of a page about a dictionary that are alike in all methods that train one: warnings, the training, the texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from finetrace.core.page import Figure, Line, Passage, Series
from finetrace.dictionaries.findings import Findings, why
from finetrace.dictionaries.tables import plain

__all__ = ["beside", "learning", "passages", "silence", "warnings"]

FEW_TEXTS, FEW_TOKENS = 20, 10


def beside(nulls: Sequence[Findings], key: str) -> str:
    """The nulls' values, in brackets, to follow the pair's; nothing without."""
    known = [v for null in nulls if (v := null.numbers[key].value) is not None]
    return f" ({min(known):.3g} to {max(known):.3g} for {len(known)} nulls)" if known else ""


def silence(nulls: Sequence[Findings]) -> str:
    """What has to be said where there are no nulls."""
    return (
        "" if nulls else " Without nulls, nothing here says that a harmless fine-tune would not do the same."
    )


def warnings(result: Findings) -> Iterator[str]:
    if result.lost:
        yield f"{result.lost} tokens had states that are not finite and count nowhere: try --dtype float32."
    if (none := why(result.reason, result.rows)) is not None:
        yield none.long
    fitted, share = result.fitted, result.numbers["explained_share"].value
    if fitted is None:
        return
    yield from (f"Training: {text}" for text in fitted.warnings)
    if not len(result.shown):
        yield "No latent fires on any text and changes anything: what is read is the part that is the same at every token alone."
    if share is not None and share <= 0:
        yield (
            "On held-out texts the dictionary says no more of the change than nothing would: its latents are of the texts that "
            "it was trained on. More texts, or fewer latents."
        )
    if result.rows < FEW_TOKENS * fitted.latents:
        yield (
            f"{result.rows} tokens trained {fitted.latents} latents: fewer than ten tokens each. Latents may be single texts."
        )
    few = [name for name, keys in result.slices.items() if keys["explained_change"].texts < FEW_TEXTS]
    if few:
        yield f"Fewer than {FEW_TEXTS} held-out texts on {', '.join(few)}: intervals are rough there."


def learning(result: Findings, labels: Mapping[str, str]) -> Figure:
    """labels: of the shares that were looked at in the training."""
    series: tuple[Series, ...] = ()
    if result.fitted is not None:
        data = result.fitted.checked.data
        x = tuple(float(step) for step in data["step"])
        series = tuple(
            Series(label, x, tuple(plain(float(value)) for value in data[name]))
            for name, label in labels.items()
        )
    return Figure(
        "learning",
        "Training",
        Line(series),
        "step",
        "unexplained share of variance",
        "Held-out tokens. Still falling at the end: more steps. Rising: more texts, or fewer latents.",
    )


def passages(result: Findings) -> list[Passage]:
    """Each text once for a latent: those of the last bin are often its top ones."""
    first = {(p.latent, p.row): p for p in reversed(result.passages)}
    return [
        Passage(
            title=f"latent {p.latent}, {_strength(p.bin)}: {p.value:.3g} in {p.slice}, text {p.row}"
            + (f" (and {p.folded} like it)" if p.folded else ""),
            tokens=p.tokens,
            values=p.values,
            unit="code of the latent at this token",
            slice=p.slice,
        )
        for p in result.passages
        if first[p.latent, p.row] is p
    ]


def _strength(name: str) -> str:
    """A bin's name, for a title."""
    return f"{name} of its largest code" if name[0].isdigit() else name
