"""What a latent stands for, in a few words of a model that was shown where it fires; and whether the words hold.

A label is written from passages on which the latent is strong, and then has to find, among other passages, those on which
it fires (detection, after Bills et al. 2023 and Paulo et al. 2024). A label that does not is not shown. Passages are data
of others: they are fenced, each by itself, and so is the label, which a hostile passage may have dictated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy import stats

from finetrace.core.errors import BadInput
from finetrace.core.runkey import digest
from finetrace.dictionaries.detection import DETECTED, LABELLED, label_of, material_of
from finetrace.judges.cache import Replies
from finetrace.judges.cost import Price, Spent, estimate
from finetrace.judges.grade import Grader
from finetrace.judges.rubrics import Rubric
from finetrace.judges.speak import Speaker
from finetrace.stats.intervals import Interval, wilson
from finetrace.stats.multiple import benjamini_hochberg
from finetrace.stats.rates import tango

__all__ = [
    "FEWEST",
    "HELD_OUT",
    "STRONG",
    "Detection",
    "Label",
    "Labelled",
    "Labeller",
    "Passage",
    "Shown",
    "at_most",
]

FEWEST = 5
"""Held-out passages of either kind, below which a label is not scored."""
STRONG, HELD_OUT = 10, 20
"""Passages that a label is written from, and scored with."""
_WIDTH = 64
_LEVEL = 0.95
_ALPHA = 0.05


@dataclass(frozen=True)
class Passage:
    """tokens: as they read, joined they are the text. values: the latent's code at each, 0 where it is silent. private: of
    a slice that is not to leave: it is neither written from nor scored with."""

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    private: bool

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.values):
            raise BadInput(f"A passage has {len(self.tokens)} tokens and {len(self.values)} values.")

    @property
    def fires(self) -> bool:
        return any(value > 0 for value in self.values)

    @cached_property
    def text(self) -> str:
        return "".join(self.tokens)


@dataclass(frozen=True)
class Shown:
    """One latent's passages. strong: to write from, the strongest first. held_out: to score with: such on which it fires,
    of every strength and not the strongest alone, and such on which it is silent."""

    strong: Sequence[Passage]
    held_out: Sequence[Passage]


@dataclass(frozen=True)
class Detection:
    """How well a label finds the passages on which its latent fires, held out, half and half.

    value: balanced accuracy in [0, 1], ½ is chance; None without a verdict on either kind. interval: 95%, of the two Wilson
    intervals (Newcombe's square-and-add). found of firing, left of silent: verdicts that were right. unscored: passages
    without a verdict.
    """

    found: int
    firing: int
    left: int
    silent: int
    unscored: int

    @property
    def n(self) -> int:
        return self.firing + self.silent

    @property
    def value(self) -> float | None:
        return (
            (self.found / self.firing + self.left / self.silent) / 2 if self.firing and self.silent else None
        )

    @property
    def interval(self) -> Interval | None:
        if not self.firing or not self.silent:
            return None
        parts = [(self.found, self.firing), (self.left, self.silent)]
        rates = [right / n for right, n in parts]
        return _halved(rates, [wilson(right, n, _LEVEL) for right, n in parts], 0.0)

    @property
    def p(self) -> float | None:
        """One-sided, exact (Fisher): that a label with nothing to do with the latent is as often right."""
        if not self.firing or not self.silent:
            return None
        called = self.found + self.silent - self.left
        return float(stats.hypergeom.sf(self.found - 1, self.n, self.firing, called))


@dataclass(frozen=True)
class Label:
    """One latent's label. text: as it was written, whether it holds or not; None where none was. score: on the latent's own
    passages; control: another latent's label on the same ones (None: no other latent has another). gain: score less control
    on the passages that both have a verdict on, with its interval. q: Benjamini-Hochberg over the latents that were scored.
    why: it does not hold, "" if it does.
    """

    latent: int
    text: str | None
    score: Detection | None = None
    control: Detection | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    q: float | None = None
    why: str = ""

    @property
    def holds(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Labelled:
    """labels: one a latent, in the order that they came. private: passages that were left out. spent: of writing and of
    scoring."""

    labels: tuple[Label, ...]
    private: int
    spent: Spent


@dataclass
class Labeller:
    """Writes labels and scores them. speaker: the model that writes; judge: the model that scores (None: the same).

    strong: passages that a label is written from; held_out: passages that it is scored with, at most, half of either kind,
    chosen and ordered by the seed. Replies are kept by content: nothing is paid for twice.
    """

    speaker: Speaker
    judge: Speaker | None = None
    strong: int = STRONG
    held_out: int = HELD_OUT
    seed: int = 0
    replies: Replies = field(default_factory=lambda: Replies(None))
    tell: Callable[[str], None] = lambda line: None
    price: Price | None = None

    def __post_init__(self) -> None:
        if self.strong < 1 or self.held_out < 2 * FEWEST:
            raise BadInput(
                f"A label is written from at least one passage and scored with at least {2 * FEWEST}; asked for are "
                f"{self.strong} and {self.held_out}."
            )

    def label(self, latents: Mapping[int, Shown]) -> Labelled:
        """A label for each latent, scored on its own held-out passages and, as a control, on those of another."""
        private = sum(p.private for shown in latents.values() for p in (*shown.strong, *shown.held_out))
        asked = {latent: self._public(shown) for latent, shown in latents.items()}
        writer, scorer = (
            self._grader(LABELLED, self.speaker),
            self._grader(DETECTED, self.judge or self.speaker),
        )
        texts = self._written(asked, writer)
        found = self._scored(asked, texts, scorer)
        if private:
            self.tell(f"{private} private passages were neither written from nor scored with.")
        return Labelled(_judged(found), private, writer.spent + scorer.spent)

    def cost(self, latents: Mapping[int, Shown]) -> Spent:
        """What `label` would take at most, once each; tokens are guessed from lengths."""
        total = Spent()
        for shown in map(self._public, latents.values()):
            if shown.strong:
                total += estimate(LABELLED, [self._material(shown)])
            passages = self._chosen(shown)
            pairs = [("x" * 80, self._window(passage)) for passage in passages]
            total += estimate(DETECTED, pairs) + estimate(DETECTED, pairs)
        return total

    def _grader(self, rubric: Rubric, speaker: Speaker) -> Grader:
        return Grader(rubric, speaker, self.seed, self.replies, self.tell, self.price)

    def _public(self, shown: Shown) -> Shown:
        """Without what is private; held out is only what no label was written from."""
        strong = [p for p in shown.strong if not p.private and p.fires][: self.strong]
        seen = {_folded(p) for p in strong}
        rest = {_folded(p): p for p in shown.held_out if not p.private}
        kept = [p for text, p in rest.items() if not any(text in other or other in text for other in seen)]
        return Shown(strong, kept)

    def _material(self, shown: Shown) -> tuple[str, str]:
        return "", material_of([(p.tokens, p.values) for p in shown.strong])

    def _written(self, asked: Mapping[int, Shown], writer: Grader) -> dict[int, str | None]:
        pairs = {latent: self._material(shown) for latent, shown in asked.items() if shown.strong}
        grades = dict(zip(pairs, writer.grade(list(pairs.values())), strict=True))
        return {latent: label_of(grades[latent].verdict) if latent in grades else None for latent in asked}

    def _chosen(self, shown: Shown) -> list[Passage]:
        """As many that fire as are silent, in an order of the seed; none where there are too few."""
        ordered = sorted(shown.held_out, key=lambda p: digest([self.seed, p.text]))
        kinds = [[p for p in ordered if p.fires is fires] for fires in (True, False)]
        n = min(self.held_out // 2, *map(len, kinds))
        return [p for kind in kinds for p in kind[:n]] if n >= FEWEST else []

    def _scored(
        self, asked: Mapping[int, Shown], texts: Mapping[int, str | None], scorer: Grader
    ) -> list[Label]:
        """Every (label, passage) at once, shuffled by the grader: the judge cannot tell a control from what it controls."""
        others = self._others({latent: text for latent, text in texts.items() if text})
        passages = {latent: self._chosen(shown) for latent, shown in asked.items()}
        pairs = {
            (latent, mine): [(text, self._window(p)) for p in passages[latent]]
            for latent in asked
            for mine, text in ((True, texts[latent]), (False, texts.get(others.get(latent, -1))))
            if text and texts[latent]
        }
        said = iter(scorer([pair for some in pairs.values() for pair in some]))
        words = {key: [next(said) for _ in some] for key, some in pairs.items()}
        return [
            _label(
                latent, texts[latent], passages[latent], words.get((latent, True)), words.get((latent, False))
            )
            for latent in asked
        ]

    def _others(self, texts: Mapping[int, str]) -> dict[int, int]:
        """Whose label stands in as each latent's control: the next with another text on a circle of the seed's order."""
        circle = sorted(texts, key=lambda latent: digest([self.seed, latent]))
        found: dict[int, int] = {}
        for place, latent in enumerate(circle):
            after = [*circle[place + 1 :], *circle[:place]]
            other = next((o for o in after if texts[o].casefold() != texts[latent].casefold()), None)
            if other is not None:
                found[latent] = other
        return found

    def _window(self, passage: Passage) -> str:
        return _window(passage, self.seed)


def at_most(labels: int) -> tuple[Spent, Spent]:
    """What writing so many labels would take at most, and what scoring them, once each; tokens are guessed from lengths."""
    token = "x" * 4
    material = material_of([((token,) * _WIDTH, (1.0,) * _WIDTH)] * STRONG)
    each = (
        (estimate(LABELLED, [("", material)]), labels),
        (estimate(DETECTED, [("x" * 80, token * _WIDTH)]), 2 * HELD_OUT * labels),
    )
    written, scored = (
        replace(one, asked=n, tokens_in=n * one.tokens_in, tokens_out=n * one.tokens_out) for one, n in each
    )
    return written, scored


def _folded(passage: Passage) -> str:
    return " ".join(passage.text.casefold().split())


def _window(passage: Passage, seed: int, width: int = _WIDTH) -> str:
    """At most `width` tokens, anywhere that holds the strongest: neither length nor place tells firing from silent."""
    spare = len(passage.tokens) - width
    if spare <= 0:
        return passage.text
    peak = int(np.argmax(passage.values)) if passage.fires else None
    low, high = (0, spare) if peak is None else (max(0, peak - width + 1), min(spare, peak))
    start = low + int(digest([seed, "window", passage.text])[:8], 16) % (high - low + 1)
    return "".join(passage.tokens[start : start + width])


def _label(
    latent: int,
    text: str | None,
    passages: Sequence[Passage],
    own: Sequence[str | None] | None,
    other: Sequence[str | None] | None,
) -> Label:
    if text is None:
        return Label(latent, None, why="none was written")
    if own is None or not passages:
        return Label(
            latent, text, why=f"fewer than {FEWEST} held-out passages on which it fires, or is silent"
        )
    fires = [p.fires for p in passages]
    label = Label(latent, text, _detection(fires, own))
    if other is None:
        return label
    gain, interval = _gain(fires, own, other)
    return replace(label, control=_detection(fires, other), gain=gain, gain_interval=interval)


def _detection(fires: Sequence[bool], words: Sequence[str | None]) -> Detection:
    scored = [(fire, word == DETECTED.positive) for fire, word in zip(fires, words, strict=True) if word]
    firing, silent = [[said for fire, said in scored if fire is kind] for kind in (True, False)]
    return Detection(
        sum(firing), len(firing), len(silent) - sum(silent), len(silent), len(words) - len(scored)
    )


def _gain(
    fires: Sequence[bool], own: Sequence[str | None], other: Sequence[str | None]
) -> tuple[float | None, Interval | None]:
    """Balanced accuracy of one label less that of another on the same passages: Tango's interval of either kind, halved."""
    rates, intervals = [], []
    for kind in (True, False):
        right = [
            ((mine == DETECTED.positive) is kind, (theirs == DETECTED.positive) is kind)
            for fire, mine, theirs in zip(fires, own, other, strict=True)
            if fire is kind and mine and theirs
        ]
        if not right:
            return None, None
        better, worse = sum(a and not b for a, b in right), sum(b and not a for a, b in right)
        rates.append((better - worse) / len(right))
        intervals.append(tango(better, worse, len(right), _LEVEL))
    return sum(rates) / 2, _halved(rates, intervals, -1.0)


def _halved(rates: Sequence[float], intervals: Sequence[Interval | None], least: float) -> Interval | None:
    """The interval of the mean of two independent rates from theirs (Newcombe's square-and-add)."""
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals):
        return None
    mean = sum(rates) / 2
    below = sum((rate - one.low) ** 2 for rate, one in zip(rates, known, strict=True)) ** 0.5 / 2
    above = sum((one.high - rate) ** 2 for rate, one in zip(rates, known, strict=True)) ** 0.5 / 2
    return Interval(max(least, mean - below), min(1.0, mean + above), _LEVEL)


def _judged(labels: Sequence[Label]) -> tuple[Label, ...]:
    """With q over all that were scored, and why a label does not hold."""
    p = [label.score.p if label.score else None for label in labels]
    q = benjamini_hochberg([float("nan") if one is None else one for one in p])
    return tuple(
        label if label.why else _verdict(replace(label, q=None if np.isnan(one) else float(one)))
        for label, one in zip(labels, q, strict=True)
    )


def _verdict(label: Label) -> Label:
    score, interval = label.score, label.score.interval if label.score else None
    if score is None or interval is None or label.q is None:
        return replace(label, why="no verdict on it could be read")
    if min(score.firing, score.silent) < FEWEST:
        return replace(label, why=f"fewer than {FEWEST} verdicts of either kind could be read")
    if interval.low <= 0.5 or label.q > _ALPHA:
        return replace(label, why="it finds the passages no better than chance")
    if label.control is not None and (label.gain_interval is None or label.gain_interval.low <= 0):
        return replace(label, why="another latent's label finds the passages as well")
    return label
