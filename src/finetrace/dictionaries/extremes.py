"""Passages of each latent: where it is strongest, some of every strength, and some in which it is silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.figures import FloatArray
from finetrace.dictionaries.reading import Reads, Tokens, inputs, portions
from finetrace.engine import Step
from finetrace.store.near import without_near_duplicates

__all__ = ["LEVELS", "SILENT", "TOP", "Extreme", "Extremes"]

LEVELS = (0.25, 0.5, 0.75, 0.95)
"""Shares of a latent's largest code, at which its quantile passages are cut."""
TOP, SILENT = "top", "silent"
# So many more are kept than are shown, as near-duplicates are folded when all is seen.
_SPARE = 3
_GRAM = 5

Fields = dict[str, np.ndarray]


@dataclass(frozen=True)
class Extreme:
    """A text as a latent reads it. bin: TOP, SILENT, or the shares of the largest code between which its score lies, as
    "0.25-0.5". score: its largest code; row: of the corpus; key: what the text holds.

    ids: tokens shown, from place `start` of the text; values: the latent's code at each, 0 where it is silent and at tokens
    that do not count. folded: near-duplicates that are not shown.
    """

    latent: int
    bin: str
    score: float
    row: int
    key: int
    slice: int
    start: int
    ids: tuple[int, ...]
    values: tuple[float, ...]
    folded: int = 0


class Extremes:
    """Keeps a bounded number of passages for each of some latents and each bin, whatever is seen and in whatever order.

    TOP keeps the largest scores. The other bins keep texts at random, but always the same ones: by a hash of text and
    latent. largest: [latent], the largest code of each, from an earlier reading (`Firings.largest`). Memory: about 170 x
    keep x window bytes for each latent, and while a batch is seen 4 bytes for each of its tokens and each latent.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        reads: Reads,
        latents: NDArray[np.int64],
        largest: FloatArray,
        *,
        keep: int = 5,
        window: int = 64,
    ) -> None:
        if len(latents) != len(largest):
            raise BadInput(f"There are {len(latents)} latents and {len(largest)} largest codes.")
        self._dictionary = dictionary
        self._reads: Reads = reads
        self._latents, self._largest = np.asarray(latents, np.int64), np.asarray(largest, np.float64)
        self._keep, self._window = keep, window
        edges = (0.0, *LEVELS, 1.0)
        between = [f"{low:g}-{high:g}" for low, high in pairwise(edges)]
        self.bins: tuple[str, ...] = (TOP, *between, SILENT)
        shape = (len(self.bins), len(latents), keep * _SPARE)
        self._held: Fields = {
            "priority": np.full(shape, -1.0),
            "key": np.zeros(shape, np.uint64),
            "score": np.zeros(shape),
            "ids": np.full((*shape, window), -1, np.int32),
            "values": np.zeros((*shape, window), np.float32),
            **{name: np.zeros(shape, np.int64) for name in ("row", "slice", "start", "size")},
        }

    def see(self, step: Step, tokens: Tokens) -> None:
        """tokens: those of `step` that count."""
        if not len(tokens):
            return
        dense = self._dense(step, tokens)
        score, peak = (
            part.double().cpu().numpy() if i == 0 else part.cpu().numpy()
            for i, part in enumerate(dense.max(1))
        )
        counted = np.bincount(tokens.text.cpu().numpy(), minlength=len(score)) > 0
        length = step.keep.sum(1).cpu().numpy() + 1
        share = np.divide(score, self._largest, out=np.zeros_like(score), where=self._largest > 0)
        which = np.where(score > 0, 1 + np.searchsorted(LEVELS, share, side="right"), len(self.bins) - 1)
        chance = _chance(tokens.keys, self._latents)
        # A silent text is shown from anywhere: always from its beginning, that would tell it from the others.
        peak = np.where(score > 0, peak, (_again(chance) * length[:, None]).astype(np.int64))
        for b in range(len(self.bins)):
            priority = np.where(score > 0, score, -1.0) if b == 0 else np.where(which == b, chance, -1.0)
            priority[~counted] = -1.0
            self._enter(b, step, tokens, dense, (priority.T, score.T, peak.T, length))

    def _dense(self, step: Step, tokens: Tokens) -> Float[torch.Tensor, "text pos latent"]:
        some = self._dictionary
        columns = torch.from_numpy(self._latents).to(tokens.base.device)
        dense = tokens.base.new_zeros(*step.ids.shape, len(columns))
        for part in portions(len(tokens), some.latents):
            codes = some.codes(inputs(some, tokens.base[part], tokens.tuned[part], self._reads))
            dense[tokens.text[part], tokens.position[part]] = codes[:, columns]
        return dense

    def _enter(
        self,
        b: int,
        step: Step,
        tokens: Tokens,
        dense: Float[torch.Tensor, "text pos latent"],
        seen: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """seen: priority, score and peak [latent, text], and the texts' lengths."""
        priority, score, peak, length = seen
        latent = np.flatnonzero((priority > self._held["priority"][b].min(1, keepdims=True)).any(1))
        if not len(latent):
            return
        text = np.argsort(-priority[latent], axis=1, kind="stable")[:, : self._keep * _SPARE]
        at = (latent[:, None], text)
        size = np.minimum(length[text], self._window)
        start = np.clip(peak[at] - self._window // 2, 0, length[text] - size)
        places = start[..., None] + np.arange(self._window)
        inside = np.arange(self._window) < size[..., None]
        places = np.where(inside, places, 0)
        ids = step.ids.cpu().numpy()[text[..., None], places]
        index = tuple(
            torch.from_numpy(part).to(dense.device)
            for part in (text[..., None], places, latent[:, None, None])
        )
        values = dense[index].float().cpu().numpy()
        self._keep_best(
            b,
            latent,
            {
                "priority": priority[at],
                "key": tokens.keys[text],
                "score": score[at],
                "row": tokens.rows[text],
                "slice": tokens.slices[text],
                "start": start,
                "size": size,
                "ids": np.where(inside, ids, -1).astype(np.int32),
                "values": np.where(inside, values, 0.0).astype(np.float32),
            },
        )

    def _keep_best(self, b: int, latent: NDArray[np.int64], more: Fields) -> None:
        """Of what is held and what comes, [those latents, candidate], the highest priorities; equal texts once."""
        both = {name: np.concatenate([self._held[name][b, latent], more[name]], 1) for name in self._held}
        order = np.lexsort((both["row"], both["key"], -both["priority"]), axis=1)
        both = {name: _taken(array, order) for name, array in both.items()}
        # Equal texts have equal priorities, so that they now stand side by side.
        twin = np.zeros(order.shape, bool)
        twin[:, 1:] = (both["key"][:, 1:] == both["key"][:, :-1]) & (both["priority"][:, :-1] >= 0)
        both["priority"] = np.where(twin, -1.0, both["priority"])
        best = np.argsort(-both["priority"], axis=1, kind="stable")[:, : self._keep * _SPARE]
        for name, array in both.items():
            self._held[name][b, latent] = _taken(array, best)

    def merge(self, later: Extremes) -> None:
        """As if `later`'s texts had been seen here."""
        everyone = np.arange(len(self._latents))
        for b in range(len(self.bins)):
            self._keep_best(b, everyone, {name: array[b] for name, array in later._held.items()})

    def passages(self) -> tuple[Extreme, ...]:
        """At most `keep` for each latent and bin, latent by latent in the order given: the strongest first, then bin by bin."""
        out: list[Extreme] = []
        for i in range(len(self._latents)):
            for b in range(len(self.bins)):
                found = (self._extreme(b, i, place) for place in self._places(b, i))
                out += without_near_duplicates(found, _GRAM, lambda one: one.ids)[: self._keep]
        return tuple(out)

    def _places(self, b: int, i: int) -> Sequence[int]:
        return np.flatnonzero(self._held["priority"][b, i] >= 0).tolist()

    def _extreme(self, b: int, i: int, place: int) -> Extreme:
        held = {name: array[b, i, place] for name, array in self._held.items()}
        size = int(held["size"])
        return Extreme(
            latent=int(self._latents[i]),
            bin=self.bins[b],
            score=float(held["score"]),
            row=int(held["row"]),
            key=int(held["key"]),
            slice=int(held["slice"]),
            start=int(held["start"]),
            ids=tuple(held["ids"][:size].tolist()),
            values=tuple(held["values"][:size].tolist()),
        )


def _taken(array: np.ndarray, order: NDArray[np.intp]) -> np.ndarray:
    return np.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), 1)


def _chance(keys: NDArray[np.uint64], latents: NDArray[np.int64]) -> FloatArray:
    """[text, latent] in [0, 1): a function of the two alone."""
    mixed = keys[:, None] ^ (latents.astype(np.uint64)[None] + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def _again(chance: FloatArray) -> FloatArray:
    """Other numbers in [0, 1), of the lower bits."""
    return (chance * 2.0**20) % 1.0
