"""Latents of a trained dictionary labelled by the models that the user named: passages read, written from, scored with."""

from __future__ import annotations

import numpy as np

from finetrace.dictionaries.detection import LABELLED
from finetrace.dictionaries.extremes import TOP, Extreme, Extremes
from finetrace.dictionaries.feed import of_texts
from finetrace.dictionaries.labelled import LatentLabel, LatentLabels
from finetrace.dictionaries.labels import HELD_OUT, STRONG, Label, Labeller, Passage, Shown
from finetrace.dictionaries.reading import Tokens
from finetrace.dictionaries.study import Latents, Study
from finetrace.engine.desk import Desk
from finetrace.judges.grade import Grader

__all__ = ["labels_of"]

# Wider than what a judge is shown, so that the latent's place in the passage is not always its middle.
_WINDOW = 128


def labels_of(one: Study, desk: Desk, latents: Latents, count: int) -> LatentLabels | None:
    """A label for each of the first `count` latents shown, written from training texts and scored on held-out ones by the
    desk's judges of labels; None where there are no such judges (as for nulls) or no latents.

    Texts of the desk's private slices are left out before anything is asked. One reading of the texts.
    """
    feed, dictionary, shown = one.feed, one.dictionary, latents.shown[:count]
    if dictionary is None or not len(shown):
        return None
    graders = [
        judge for judge in desk.judges.values() if isinstance(judge, Grader) and judge.rubric == LABELLED
    ]
    if not graders:
        return None
    writer, scorer = graders[0], graders[-1]
    strong = Extremes(dictionary, one.reads, shown, latents.largest[:count], keep=STRONG, window=_WINDOW)
    # As many of every kind as are wanted of all: near-duplicates and what was written from fall out later.
    held = Extremes(dictionary, one.reads, shown, latents.largest[:count], keep=HELD_OUT // 2, window=_WINDOW)
    hidden, left_out = [desk.subject.slices.index(name) for name in desk.private], 0
    for step, found in feed.readings():
        public = of_texts(found, ~np.isin(found.slices, hidden))
        left_out += _texts(found) - _texts(public)
        strong.see(step, feed.only(public, "training"))
        held.see(step, feed.only(public, "held out"))
    parts = ([found for found in strong.passages() if found.bin == TOP], held.passages())
    labeller = Labeller(
        writer.speaker,
        scorer.speaker,
        seed=desk.seed,
        replies=writer.replies,
        tell=desk.tell,
        price=writer.price,
    )
    labelled = labeller.label({latent: _shown(desk, parts, latent) for latent in shown.tolist()})
    spent = labelled.spent
    return LatentLabels(
        writer=writer.speaker.name,
        scorer=scorer.speaker.name,
        rows=tuple(map(_row, labelled.labels)),
        private=left_out,
        asked=spent.asked,
        kept=spent.kept,
        tokens_in=spent.tokens_in,
        tokens_out=spent.tokens_out,
    )


def _texts(found: Tokens) -> int:
    return len(found.text.unique())


def _shown(desk: Desk, parts: tuple[list[Extreme], tuple[Extreme, ...]], latent: int) -> Shown:
    strong, held = ([one for one in some if one.latent == latent] for some in parts)
    # A text among the strongest is in its range of strength too: of the held-out ones no range is favoured.
    spread = [one for one in held if one.bin != TOP]
    return Shown([_passage(desk, one) for one in strong], [_passage(desk, one) for one in spread])


def _passage(desk: Desk, one: Extreme) -> Passage:
    private = desk.subject.slices[one.slice] in desk.private
    return Passage(tuple(desk.subject.spell(list(one.ids))), one.values, private)


def _row(label: Label) -> LatentLabel:
    score, interval = label.score, label.score.interval if label.score else None
    return LatentLabel(
        latent=label.latent,
        text=label.text or "",
        score=score.value if score else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=score.n if score else 0,
        unscored=score.unscored if score else 0,
        control=label.control.value if label.control else None,
        p=score.p if score else None,
        q=label.q,
        holds=label.holds,
        why=label.why,
    )
