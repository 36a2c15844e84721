"""What a dictionary is trained on and read with, from the desk's texts: rows that count, parted by text, shuffled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.errors import BadInput, DataError
from finetrace.data import Corpus
from finetrace.data.roles import TEMPLATE
from finetrace.dictionaries.reading import Reads, Tokens, held_out, tokens
from finetrace.engine import Step
from finetrace.engine.desk import Desk
from finetrace.models import layer_index
from finetrace.store.buffer import shuffled

__all__ = ["Feed", "Moments", "Part", "of_texts", "stacked"]

Part = Literal["training", "held out"]

_FEWEST_HELD = 8
_VALIDATION = 8192
_MODELS = {"both": 2, "difference": 1, "base": 1, "tuned": 1}


@dataclass(eq=False)
class Moments:
    """Of base, tuned and tuned - base, in this order, over the tokens of one part. total: float64 [3, d], their sums;
    square: float64 [3], sums of their squared norms."""

    total: Float[Tensor, "side d"]
    square: Float[Tensor, " side"]
    tokens: int = 0
    texts: int = 0

    @property
    def mean(self) -> Float[Tensor, "side d"]:
        return self.total / max(1, self.tokens)

    @property
    def variance(self) -> Float[Tensor, " side"]:
        """Mean squared distance from the mean, summed over dimensions; never below 0."""
        return (self.square / max(1, self.tokens) - self.mean.square().sum(1)).clamp(min=0)

    def add(self, some: Tokens) -> None:
        for i, x in enumerate((some.base, some.tuned, some.tuned - some.base)):
            wide = x.double()
            self.total[i] += wide.sum(0).cpu()
            self.square[i] += wide.square().sum().cpu()
        self.tokens += len(some)
        self.texts += len(some.text.unique())


class Feed:
    """Tokens after block `layer` of the desk's two models, without the first of each text and (unless `template`) what the
    chat template added: `training` rows for a trainer, `part` for whoever reads with what was trained.

    held: share of texts kept from training, by what they hold: equal texts fall on one side, and the same texts in every
    contrast. Of a small corpus more are held out, so that there are some. memory: bytes; a corpus whose states fit is read
    through the models once, a larger one whenever it is asked for, by way of a shuffle buffer of that size.

    Made by one reading, which gives `moments` (of each part), `validation` (held-out rows, at most 8,192, evenly taken) and
    `validation_texts` (the keys of their texts).
    """

    def __init__(
        self,
        desk: Desk,
        layer: int | float,
        reads: Reads,
        *,
        held: float = 0.2,
        template: bool = False,
        memory: int = 2**29,
    ) -> None:
        if desk.corpus is None:
            raise BadInput("This method's card asks for no steps (Needs.steps).")
        self.layer = layer_index(layer, desk.pair.n_layers)
        self.models = _MODELS[reads]
        self.lost = 0
        self._desk, self._template = desk, template
        self._reads: Reads = reads
        self._held = _held_rows(desk.corpus, held)
        self._memory = memory
        self.moments: dict[Part, Moments] = {
            part: Moments(
                torch.zeros(3, desk.pair.d_model, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
            )
            for part in ("training", "held out")
        }
        self._kept: list[tuple[Step, Tokens]] | None = None
        self.validation, self.validation_texts = self._first(desk.corpus)
        self._in_memory: Tensor | None = None

    @property
    def fits(self) -> bool:
        """Whether the states are in memory, so that reading them again costs no forwards."""
        return self._kept is not None

    def readings(self, part: Part | None = None) -> Iterator[tuple[Step, Tokens]]:
        """Batches of texts in the corpus's order with their tokens that count; of a part, only that part's tokens."""
        read = self._read() if self._kept is None else iter(self._kept)
        for step, found in read:
            yield step, found if part is None else self.only(found, part)

    def only(self, found: Tokens, part: Part) -> Tokens:
        """Those of a part's texts."""
        held = self._held[found.rows]
        return of_texts(found, held if part == "held out" else ~held)

    def training(self, batch: int) -> Callable[[int], Iterator[Float[Tensor, "row model d"]]]:
        """What `dictionaries.training.train` is given: an epoch's training rows, in another order every epoch."""

        def epoch(number: int) -> Iterator[Tensor]:
            seed = int(self._desk.generator("epoch", str(number)).integers(2**31))
            generator = torch.Generator().manual_seed(seed)
            if self._kept is not None:
                rows = self._whole()
                for some in torch.randperm(len(rows), generator=generator).split(batch):
                    yield rows[some.to(rows.device)]
                return
            blocks = (
                stacked(self.only(found, "training"), self._reads) for _, found in self._read(shuffled=seed)
            )
            size = max(batch, self._memory // (4 * self.models * self._desk.pair.d_model))
            yield from shuffled(blocks, size, batch, generator)

        return epoch

    def _first(self, corpus: Corpus) -> tuple[Tensor, NDArray[np.uint64]]:
        expected = sum(corpus.tokens[i].scored for i in np.flatnonzero(self._held))
        stride, seen, size = max(1, -(-expected // _VALIDATION)), 0, 0
        kept: list[tuple[Step, Tokens]] | None = []
        held: list[Tensor] = []
        texts: list[NDArray[np.uint64]] = []
        for step, found in self._read():
            self.lost += found.lost
            for part, moments in self.moments.items():
                moments.add(self.only(found, part))
            some = self.only(found, "held out")
            taken = slice(-seen % stride, None, stride)
            # A copy: a view of some rows would keep them all in memory.
            held.append(stacked(some, self._reads)[taken].clone())
            texts.append(some.keys[some.text[taken].cpu().numpy()])
            seen += len(some)
            size += len(found)
            if kept is not None:
                kept.append((replace(step, hidden=_gone), found))
                # Both sides are kept, and the training rows beside them.
                if 4 * size * found.base.shape[1] * (2 + self.models) > self._memory:
                    kept = None
        self._kept = kept
        if not held:
            return torch.zeros(0, self.models, self._desk.pair.d_model), np.zeros(0, np.uint64)
        return torch.cat(held), np.concatenate(texts)

    def _read(self, shuffled: int | None = None) -> Iterator[tuple[Step, Tokens]]:
        for step in self._desk.steps((self.layer,), shuffled=shuffled):
            counted = step if self._template else replace(step, keep=step.keep & (step.role != TEMPLATE))
            yield step, tokens(counted, self.layer)

    def _whole(self) -> Float[Tensor, "row model d"]:
        if self._in_memory is None:
            parts = [stacked(found, self._reads) for _, found in self.readings("training")]
            if not parts:
                raise DataError("There are no texts to train a dictionary on.")
            self._in_memory = torch.cat(parts)
        return self._in_memory


def stacked(found: Tokens, reads: Reads) -> Float[Tensor, "token model d"]:
    """The rows of a dictionary that reads so: see `reading.inputs`, which checks that it does."""
    match reads:
        case "both":
            return torch.stack([found.base, found.tuned], 1)
        case "difference":
            return (found.tuned - found.base)[:, None]
        case "base":
            return found.base[:, None]
        case _:
            return found.tuned[:, None]


def of_texts(found: Tokens, wanted: NDArray[np.bool_]) -> Tokens:
    """The tokens of some of the texts, [text]; texts keep their numbers."""
    mask = torch.from_numpy(wanted).to(found.text.device)[found.text]
    return replace(
        found,
        base=found.base[mask],
        tuned=found.tuned[mask],
        text=found.text[mask],
        position=found.position[mask],
    )


def _held_rows(corpus: Corpus, share: float) -> NDArray[np.bool_]:
    """Of each row of the corpus, whether it is held out. A row's key tells equal texts apart, so that their tokens decide."""
    hashed = [
        hashlib.blake2b(np.asarray(one.ids, np.int64).tobytes(), digest_size=8) for one in corpus.tokens
    ]
    keys = np.array([int.from_bytes(one.digest(), "little") for one in hashed], np.uint64)
    held = held_out(keys, share)
    fewest = min(_FEWEST_HELD, len(np.unique(keys)) // 2)
    if share > 0 and len(np.unique(keys[held])) < fewest:
        held = keys >> np.uint64(40) <= np.unique(keys >> np.uint64(40))[fewest - 1]
    return held


def _gone(layer: int) -> tuple[Tensor, Tensor]:
    raise BadInput(f"The hidden states of layer {layer} are read as tokens: a step that is kept holds none.")
