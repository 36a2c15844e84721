"""Rows into training batches: what is cut, what is packed together, in which order, and which tokens are targets."""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finetrace.core.errors import DataError
from finetrace.data.examples import Example, make_examples
from finetrace.data.rows import Row
from finetrace.models.supervised import IGNORED, Sample, collate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Collator", "Order", "Packed", "Prepared", "Truncation", "pack", "prepare"]

_WHOLE = 1 << 30


@dataclass(frozen=True)
class Truncation:
    """What `max_tokens` did to the rows.

    cut: rows that lost tokens. shortened: of them, those that lost some of their targets. dropped: of them, those that
    lost all, and are not trained on. longest: tokens of the longest row before the cut. tokens, targets: what is left.
    """

    rows: int
    max_tokens: int
    cut: int
    shortened: int
    dropped: int
    longest: int
    tokens: int
    targets: int

    def told(self) -> str:
        """The report in one line."""
        size = f"{self.rows - self.dropped} rows, {self.tokens} tokens, {self.targets} of them targets"
        if not self.cut:
            return f"{size}; none is longer than {self.max_tokens} tokens"
        share = 100 * self.cut / self.rows
        line = f"{size}; {self.cut} of {self.rows} rows ({share:.1f}%) are cut to {self.max_tokens} tokens"
        line += f" (the longest has {self.longest}), {self.shortened} lose part of their response"
        return line + (f", {self.dropped} lose all of it and are left out" if self.dropped else "")


@dataclass(frozen=True)
class Prepared:
    """Rows ready to be learnt: examples with at least one target each, and what the cut did."""

    examples: tuple[Example, ...]
    truncation: Truncation


def prepare(
    rows: Iterable[Mapping[str, Any] | Row], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> Prepared:
    """Rows as examples of at most `max_tokens` tokens. Those that lose their whole response are left out and counted."""
    whole = make_examples(rows, tokenizer, max_tokens=_WHOLE)
    cut = [Example(example.ids[:max_tokens], example.loss[:max_tokens]) for example in whole]
    kept = tuple(example for example in cut if example.loss.any())
    if not kept:
        raise DataError(
            f"No row has anything left to learn in its first {max_tokens} tokens: raise data.max_tokens "
            f"(the longest row has {max(map(len, whole))})."
        )
    lost = [(int(old.loss.sum()), int(new.loss.sum())) for old, new in zip(whole, cut, strict=True)]
    truncation = Truncation(
        rows=len(whole),
        max_tokens=max_tokens,
        cut=sum(len(example) > max_tokens for example in whole),
        shortened=sum(0 < after < before for before, after in lost),
        dropped=len(whole) - len(kept),
        longest=max(map(len, whole)),
        tokens=sum(map(len, kept)),
        targets=int(sum(example.loss.sum() for example in kept)),
    )
    return Prepared(kept, truncation)


@dataclass(frozen=True)
class Packed:
    """Several samples in one sequence, each of which sees only itself."""

    parts: tuple[Sample, ...]

    def __len__(self) -> int:
        return sum(len(part.ids) for part in self.parts)


def pack(samples: Sequence[Sample], max_tokens: int) -> list[Packed]:
    """Samples in as few sequences of at most `max_tokens` as best fit finds: longest first, each where it fits tightest."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []
    for number in sorted(range(len(samples)), key=lambda i: (-len(samples[i].ids), i)):
        size = len(samples[number].ids)
        place = bisect_left(free, (size, -1))
        if place == len(free):
            bins.append([])
            room, chosen = max_tokens, len(bins) - 1
        else:
            room, chosen = free.pop(place)
        bins[chosen].append(number)
        insort(free, (room - size, chosen))
    return [Packed(tuple(samples[number] for number in members)) for members in bins]


@dataclass(frozen=True)
class Collator:
    """Samples, or packed ones, as a model's keyword arguments.

    pad: the token of padding, which is never a target. flat: all packed sequences of a batch in one row, as flash
    attention wants them; else one row each.
    """

    pad: int
    flat: bool = False

    def __call__(self, items: Sequence[Sample | Packed]) -> dict[str, Tensor]:
        packed = [item for item in items if isinstance(item, Packed)]
        if not packed:
            batch = collate([item for item in items if not isinstance(item, Packed)], self.pad)
            return {"input_ids": batch.ids, "attention_mask": batch.attention, "labels": batch.labels}
        if self.flat:
            packed = [Packed(tuple(part for item in packed for part in item.parts))]
        width = max(map(len, packed))
        # No attention mask: transformers looks for the places where positions start anew only where there is none.
        # Padding counts from 0 too, and so is a sequence of its own.
        return {
            "input_ids": torch.stack([_row([part.ids for part in p.parts], width, self.pad) for p in packed]),
            "position_ids": torch.stack([_positions(p, width) for p in packed]),
            "labels": torch.stack(
                [_row([_labels(part) for part in p.parts], width, IGNORED) for p in packed]
            ),
        }


def _labels(part: Sample) -> np.ndarray:
    return np.where(part.loss, part.ids, IGNORED)


def _row(parts: Sequence[np.ndarray], width: int, fill: int) -> Tensor:
    joined = np.concatenate(parts).astype("int64")
    return torch.from_numpy(np.pad(joined, (0, width - len(joined)), constant_values=fill))


def _positions(packed: Packed, width: int) -> Tensor:
    lengths = [len(part.ids) for part in packed.parts]
    return torch.cat([torch.arange(length) for length in (*lengths, width - sum(lengths))])


class Order(torch.utils.data.Sampler[int]):
    """Every row once an epoch, in an order that the seed and the epoch alone decide, so that any epoch can be resumed."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self._epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        order = list(range(self._count))
        random.Random(f"{self._seed}:{self._epoch}").shuffle(order)
        return iter(order)
