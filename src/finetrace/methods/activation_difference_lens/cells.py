"""Sums put together: one place of one slice, or of all slices, at every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from finetrace.methods.activation_difference_lens import Config
from finetrace.methods.activation_difference_lens.places import (
    CHAT,
    FIRST,
    KINDS,
    REST,
    START,
    TEXT,
    named,
    places,
)
from finetrace.methods.activation_difference_lens.sums import Sums
from finetrace.stats.grouped import Grouped, grouped

# Without rest: an average over the most positions has the least noise, and would be picked whatever it says.
PICKABLE = (TEXT, CHAT, START)


@dataclass(frozen=True, eq=False)
class Cell:
    """One place. sums [layer, group, d_model]: the groups' sums of tuned minus base; square, base_norm, other_norm
    [layer, group]; base [layer, d_model]: mean of the base's states over all texts; texts, tokens [group]."""

    place: str
    sums: np.ndarray
    square: np.ndarray
    base_norm: np.ndarray
    other_norm: np.ndarray
    base: np.ndarray
    texts: np.ndarray
    tokens: np.ndarray

    @property
    def grouped(self) -> Grouped:
        return grouped(self.sums, self.square, self.texts)

    def half(self, groups: slice) -> Cell:
        """The same place, from some of the groups alone; `base` stays that of all."""
        parts = {
            name: getattr(self, name)[:, groups] for name in ("sums", "square", "base_norm", "other_norm")
        }
        return Cell(self.place, base=self.base, texts=self.texts[groups], tokens=self.tokens[groups], **parts)


def place_names(config: Config) -> tuple[str, ...]:
    """Every place, the configured one first."""
    singles = [name for kind in KINDS for name in places(config, kind)[:-2]]
    return tuple(dict.fromkeys([config.position, *singles, START, REST]))


def pickable(place: str) -> bool:
    return place.startswith(PICKABLE) and place != FIRST


def cell(
    config: Config, sums: Mapping[str, Sums], slices: Iterable[int], shape: tuple[int, int], place: str
) -> Cell:
    """The place `place` over the slices. shape: layers, d_model."""
    layers, d_model = shape
    flat = np.zeros((3, layers, config.groups))
    total = np.zeros((layers, config.groups, d_model))
    base = np.zeros((layers, d_model))
    counts = np.zeros((2, config.groups), dtype=np.int64)
    wanted = set(slices)
    for kind, at in named(config, place):
        for (slice_, group), block in sorted(sums[kind].blocks.items()):
            if slice_ in wanted:
                total[:, group] += block.difference[:, at].cpu().numpy()
                for row, values in enumerate((block.square, block.base_norm, block.other_norm)):
                    flat[row, :, group] += values[:, at].cpu().numpy()
                counts[:, group] += [int(block.texts[at]), int(block.tokens[at])]
        for slice_ in sorted(wanted & sums[kind].base.keys()):
            base += sums[kind].base[slice_][:, at].cpu().numpy()
    square, base_norm, other_norm = flat
    texts, tokens = counts
    return Cell(place, total, square, base_norm, other_norm, base / max(1, texts.sum()), texts, tokens)
