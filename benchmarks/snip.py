"""The case `snip`: scores of every weight by one pass over all layers, beside the peer's sweep for each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import measure, models, peer
from benchmarks.case import Arm, Case, Preset
from benchmarks.floor import products
from finetrace.data.examples import Example
from finetrace.weights.groups import jaccard, top
from finetrace.weights.scores import linear_layers, score

DEPTHS = (1, 2, 4, 8)
OF_LAYERS, OVERLAP, FRACTION = 0.7, 0.98, 0.01
_PAD = 0


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    some = samples(preset)

    @cache
    def model(dtype: torch.dtype = dtype) -> Any:
        return models.plain(folder / "base", dtype)

    scored, size = sum(o * i for i, o in preset.block_shapes()) * preset.layers, dtype.itemsize
    ours, theirs = ours_flop(preset), peer_flop(preset)
    arms = {
        "peer": Arm(lambda: lambda: their_scores(model(), some), theirs, {"accumulators": size * scored}),
        "ours": Arm(
            lambda: lambda: our_scores(model(), some, preset.batch), ours, {"accumulators": 4 * scored}
        ),
        "ours_halves": Arm(
            lambda: lambda: our_scores(model(), some, preset.batch, halves=True),
            ours,
            {"accumulators": 8 * scored},
        ),
        "floor": Arm(lambda: products(floor_shapes(preset), dtype), ours),
    }
    return Case(
        "snip",
        {name: Arm(_loaded(arm, model), arm.flop, arm.bytes) for name, arm in arms.items()},
        "work",
        lambda figures: goal(figures, preset),
        ("ours",),
        accuracy=lambda: accuracy(model(), model(torch.float32), some, preset.batch),
        notes=lambda: {"by_layers": by_layers(model(), some, preset.batch)},
    )


def _loaded(arm: Arm, model: Any) -> Any:
    """The model is in memory before the work is timed, whatever the arm."""

    def open_arm() -> Any:
        model()
        return arm.open()

    return open_arm


def samples(preset: Preset) -> list[Example]:
    """Of one length, the second half of each the response."""
    rng = np.random.default_rng(0)
    loss = np.arange(preset.length) >= preset.length // 2
    return [
        Example(rng.integers(8, preset.vocab, preset.length).astype(np.int32), loss)
        for _ in range(preset.texts)
    ]


def our_scores(
    model: Any, some: Sequence[Example], batch: int, *, halves: bool = False
) -> Mapping[str, Tensor]:
    return score(model, some, pad=_PAD, batch=batch, halves=halves).of("snip")


def their_scores(model: Any, some: Sequence[Example]) -> Mapping[str, Tensor]:
    """Without the files that the peer writes of all scores, which would only add to its time."""
    blocks = [layer.block for layer in linear_layers(model)[0].values()]
    runs = [
        {name: layer.module for name, layer in linear_layers(model)[0].items() if layer.block == block}
        for block in sorted(set(blocks))
    ]
    return peer.snip(model, runs, [(torch.from_numpy(one.ids.astype("int64")), one.loss) for one in some])


def ours_flop(preset: Preset) -> int:
    """Forward, gradients of inputs, and of weights once; the head forward and backward at response tokens."""
    tokens, response = preset.texts * preset.length, preset.texts * (preset.length - preset.length // 2)
    return 3 * preset.trunk_flop(tokens) + 2 * preset.head_flop(response)


def peer_flop(preset: Preset) -> int:
    """For every layer: all of the forward, the head of all tokens twice, gradients of inputs from the last layer down to
    that one, and of its weights."""
    tokens, layers = preset.texts * preset.length, preset.layers
    one = preset.trunk_flop(tokens) // layers
    return one * (layers**2 + layers * (layers + 1) // 2 + layers) + 2 * layers * preset.head_flop(tokens)


def floor_shapes(preset: Preset) -> list[tuple[int, int, int]]:
    """(rows, in, out) of the bare products of one pass."""
    n, t = preset.texts, preset.length
    shapes = [(n * t, i, o) for i, o in preset.block_shapes()] + [
        (n * t, o, i) for i, o in preset.block_shapes()
    ]
    shapes += [(o, t, i) for i, o in preset.block_shapes() for _ in range(n)]
    response = n * (t - t // 2)
    return shapes * preset.layers + [(response, preset.d, preset.vocab), (response, preset.vocab, preset.d)]


def accuracy(model: Any, exact: Any, some: Sequence[Example], batch: int) -> list[dict[str, float]]:
    """Of each arm's scores, against ours of the same weights in float32: share of the top group in both, and the
    relative Frobenius error."""
    true = our_scores(exact, some, batch)
    wanted = top(true, FRACTION, name="true")
    rows = []
    for arm, found in (("peer", their_scores(model, some)), ("ours", our_scores(model, some, batch))):
        common = (
            jaccard(top({name: s.float() for name, s in found.items()}, FRACTION, name=arm), wanted) or 0.0
        )
        error = sum(float((found[name].float() - true[name]).square().sum()) for name in true)
        size = sum(float(scores.square().sum()) for scores in true.values())
        rows.append(
            {
                arm: 1.0,
                "overlap": round(2 * common / (1 + common), 4),
                "error": round((error / size) ** 0.5, 5),
            }
        )
    return rows


def by_layers(
    model: Any, some: Sequence[Example], batch: int, depths: Sequence[int] = DEPTHS
) -> dict[str, Any]:
    """Peer's time over ours in models of other depths, otherwise the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = {}
    for depth in depths:
        config = AutoConfig.for_model(
            **(model.config.to_dict() | {"num_hidden_layers": depth, "layer_types": None})
        )
        other = AutoModelForCausalLM.from_config(config, dtype=model.dtype).eval()
        work = {
            "peer": lambda other=other: their_scores(other, some),
            "ours": lambda other=other: our_scores(other, some, batch),
        }
        seconds = measure.interleaved(work, 1)
        ratio = measure.paired(seconds["peer"], seconds["ours"])["median"]
        found[str(depth)] = {"ratio": ratio, "of_layers": round(ratio / depth, 3)}
    return found


def goal(figures: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    measured = figures["arms"]["ours"]["ratio"]["median"]
    overlap = next(row["overlap"] for row in figures["accuracy"] if "ours" in row)
    return {
        "name": f"at least {OF_LAYERS} x the number of layers, with the top {FRACTION:.0%} of float32",
        "measured": round(measured / preset.layers, 3),
        "bound": OF_LAYERS,
        "reached": measured >= OF_LAYERS * preset.layers,
        "overlap": overlap,
        "reached_accuracy": overlap >= OVERLAP,
    }
