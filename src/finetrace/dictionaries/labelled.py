"""Labels of latents as a result keeps them and a page shows them: who wrote them, and how well each finds its latent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetrace.core.page import Cell, Table

__all__ = ["LatentLabel", "LatentLabels", "labels_table", "labels_warnings"]

NO_LABEL = "no label holds"


@dataclass(frozen=True)
class LatentLabel:
    """One latent's label. text: as it was written, "" where none was. score: balanced accuracy on held-out passages (1/2 by
    chance), low and high its 95% interval, n the passages with a verdict, unscored those without; control: the same of another
    latent's label on these passages. None where there is no such figure. p: one-sided, exact, that a label with nothing to do
    with the latent is as often right; q: Benjamini-Hochberg over the labels that were scored. why: it does not hold."""

    latent: int
    text: str
    score: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    control: float | None
    p: float | None
    q: float | None
    holds: bool
    why: str

    @property
    def shown(self) -> str:
        """The label, or that none holds: what a page may say of the latent."""
        return self.text if self.holds else NO_LABEL


@dataclass(frozen=True)
class LatentLabels:
    """writer, scorer: the models, by the names that the user gave. rows: one a latent, in the order shown. private: texts
    that were neither written from nor scored with, as they go to no model. asked, kept: questions put, and those that were
    answered from an earlier run; tokens_in, tokens_out: read and written by the models for the former."""

    writer: str
    scorer: str
    rows: tuple[LatentLabel, ...]
    private: int
    asked: int
    kept: int
    tokens_in: int
    tokens_out: int


def labels_table(labels: LatentLabels) -> Table:
    columns = (
        "latent", "label", "score", "low", "high", "n", "unscored", "control", "p", "q", "holds", "why",
    )  # fmt: skip
    rows: list[tuple[Cell, ...]] = [
        (
            one.latent, one.shown, one.score, one.low, one.high, one.n, one.unscored, one.control, one.p, one.q, one.holds,
            one.why,
        )
        for one in labels.rows
    ]  # fmt: skip
    same = labels.scorer == labels.writer
    note = (
        f"Written by {labels.writer} from the training passages on which the latent is strongest; {'it' if same else labels.scorer} then said, of "
        "held-out passages one by one, whether each is of the label. score: balanced accuracy, half of the passages with the "
        "latent and half without; 0.5 is chance; low, high: 95%. control: another latent's label on the same passages. p: exact, "
        "one-sided; q: over all labels. A label is shown if it beats chance and the control. It says when the latent fires, not "
        "what it does."
    )
    return Table("labels", "Labels of the latents", columns, tuple(rows), note)


def labels_warnings(labels: LatentLabels | None) -> Iterator[str]:
    if labels is None:
        return
    none = sum(not one.holds for one in labels.rows)
    if none:
        yield f"No label holds for {none} of {len(labels.rows)} latents: what was written does not find their passages."
    if labels.private:
        yield f"{labels.private} texts of private slices were shown to no model: labels say nothing of them."
    if labels.scorer == labels.writer:
        yield "One model wrote the labels and scored them: name two (--judge label=MODEL, twice), of different makers."
