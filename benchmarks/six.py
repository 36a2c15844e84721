"""The case `six`: six methods that read one pair, in one pass or in a pass each, with the same models open.

Three read the logits and three the hidden states. Both ways use the same kernels, so what is measured is that the texts go
through the models once. A pass of the separate ones stops where its method stops reading: without the head where no logits
are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from benchmarks.passing import Observers, cards, corpus_of, opened, passed
from finetrace.data import padded_tokens
from finetrace.data.corpus import Corpus
from finetrace.engine import PAIR, Contrast, Shape
from finetrace.models import Pair

LOGITS = ("kl", "diff_mining", "forgetting")
STATES = ("activation_difference_lens", "activation_analysis", "pca")
METHODS = (*LOGITS, *STATES)
CONTRASTS = (Contrast(PAIR, "tuned"),)
_SIDES = 2
LEAST = 2.5


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    """flop: of the models; what the methods do with what they see is not in it."""

    @cache
    def pair() -> Pair:
        return opened(folder, dtype)

    @cache
    def corpus() -> Corpus:
        return corpus_of(pair(), preset)

    def reading(methods: Sequence[str], *, compiled: bool = False) -> dict[tuple[str, str], Any]:
        shape = Shape(batch_size=preset.batch, compile=compiled)
        return passed(pair(), corpus(), cards(methods), CONTRASTS, shape, folder)

    def separate(compiled: bool = False) -> Observers:
        return {key: one for name in METHODS for key, one in reading([name], compiled=compiled).items()}

    def floor() -> Work:
        padded, scored = padded_tokens(corpus(), preset.batch), corpus().scored
        shapes = [(padded, i, o) for _ in range(_SIDES * preset.layers) for i, o in preset.block_shapes()]
        return products([*shapes, *[(scored, preset.d, preset.vocab)] * _SIDES], dtype)

    trunk = _SIDES * preset.trunk_flop(padded_tokens(corpus(), preset.batch))
    head = _SIDES * preset.head_flop(corpus().scored)
    six = len(METHODS) * trunk + len(LOGITS) * head

    arms = {
        "separate": Arm(lambda: separate, six),
        "together": Arm(lambda: lambda: reading(METHODS), trunk + head),
        "separate_compiled": Arm(lambda: lambda: separate(compiled=True), six),
        "together_compiled": Arm(lambda: lambda: reading(METHODS, compiled=True), trunk + head),
        "kl": Arm(lambda: lambda: reading(["kl"]), trunk + head),
        "floor": Arm(floor, trunk + head),
    }
    return Case(
        "six",
        arms,
        "work",
        goal,
        ("separate", "together"),
        reference="separate",
        notes=lambda: {
            "texts": len(corpus()),
            "tokens": corpus().scored,
            "same": same(separate(), reading(METHODS)),
        },
    )


def same(separate: Observers, together: Observers) -> dict[str, dict[str, int]]:
    """Of each method: how many tensors its state has, how many bytes, and how many of these differ."""
    return {key[0]: differing(one.state(), together[key].state()) for key, one in separate.items()}


def differing(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> dict[str, int]:
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        raise RuntimeError("a pass alone and the pass of all methods left states of different shapes")
    # NaN is equal to itself here: as bytes.
    apart = [_bytes(one[name]) != _bytes(other[name]) for name in one]
    return {
        "tensors": len(one),
        "bytes": sum(tensor.nbytes for tensor in one.values()),
        "differing": sum(int(mask.sum()) for mask in apart),
    }


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor.flatten()


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    """So many times as fast as six passes; the states to the last bit those of six passes."""
    arms, same_in = figures["arms"], figures["notes"]["same"]
    ratio = arms["together"]["ratio"]
    apart = sum(one["differing"] for one in same_in.values())
    return {
        "name": f"six methods in one pass: >= {LEAST} times six passes; the same to the last bit",
        "measured": ratio,
        "of_kl": round(arms["together"]["seconds"] / arms["kl"]["seconds"], 3) if "kl" in arms else None,
        "differing": apart,
        "bound": round(arms["separate"]["flop"] / arms["together"]["flop"], 2),
        "reached": ratio["median"] >= LEAST and apart == 0,
    }
