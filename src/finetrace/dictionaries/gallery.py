"""The texts on which each latent is strongest, and samples of every strength, as an SQLite file that viewers open read-only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.figures import FloatArray
from finetrace.dictionaries.reading import Reads, Tokens, inputs, portions
from finetrace.engine import Step, Subject
from finetrace.store.examples import Text
from finetrace.store.examples_writer import ExamplesWriter

__all__ = ["EXAMPLES", "Gallery", "gallery"]

EXAMPLES = "examples.sqlite"


class Gallery:
    """Offers every text to the latents that fire in it. Groups of the file are named "latent 7"; a text's score is the
    latent's largest code in it, its values the codes at every token, NaN where a token does not count."""

    def __init__(
        self,
        writer: ExamplesWriter,
        dictionary: Dictionary,
        reads: Reads,
        live: NDArray[np.int64],
        subject: Subject,
    ) -> None:
        self._writer, self._dictionary, self._subject = writer, dictionary, subject
        self._reads: Reads = reads
        self._live = torch.from_numpy(live)

    def see(self, step: Step, tokens: Tokens) -> None:
        """tokens: those of `step` that count, text by text."""
        length = step.keep.sum(1).cpu().numpy() + 1
        text, position = tokens.text.cpu().numpy(), tokens.position.cpu().numpy()
        for one in np.unique(text).tolist():
            first, last = np.searchsorted(text, one), np.searchsorted(text, one, side="right")
            codes = self._codes(tokens, int(first), int(last))
            score = codes.max(0)
            fires = np.flatnonzero(score > 0)
            if not len(fires):
                continue
            ids = step.ids[one, : length[one]].cpu().numpy()
            values = np.full((len(fires), len(ids)), np.nan, np.float32)
            values[:, position[first:last]] = codes[:, fires].T
            spelled = self._subject.spell(ids.tolist())
            where = self._subject.slices[int(tokens.slices[one])]
            self._writer.offer(
                Text(ids, spelled, where, int(tokens.keys[one])), score[fires], values, groups=fires
            )

    def _codes(self, tokens: Tokens, first: int, last: int) -> NDArray[np.float32]:
        """[token, live latent]."""
        some, live, made = self._dictionary, self._live.to(tokens.base.device), []
        for part in portions(last - first, some.latents):
            rows = slice(first + part.start, first + part.stop)
            codes = some.codes(inputs(some, tokens.base[rows], tokens.tuned[rows], self._reads))
            made.append(codes[:, live].float().cpu().numpy())
        return np.concatenate(made)


@contextmanager
def gallery(
    path: Path,
    dictionary: Dictionary,
    reads: Reads,
    largest: FloatArray,
    subject: Subject,
    *,
    k: int,
    about: Mapping[str, Any] | None = None,
) -> Iterator[Gallery]:
    """The file at `path` is there, whole, when the block ends. largest: [latent], of an earlier reading of the same texts; a
    latent that never fired has none and is left out. k: examples of each list."""
    live = np.flatnonzero(np.nan_to_num(largest) > 0)
    names = [f"latent {i}" for i in live.tolist()]
    with ExamplesWriter(path, names, k, maxima=largest[live], about=about) as writer:
        yield Gallery(writer, dictionary, reads, live, subject)
