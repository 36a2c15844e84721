"""The case `activations`: what `activation_analysis` adds to the forwards, beside storing all states and aggregating them.

*naive*: the same forwards; the states of both sides at every layer are kept for the whole corpus, and norms, cosines,
quantiles and covariances are then taken of whole tensors in float32. It gives no intervals, no figures by text, place or
role, no passages and no alignment within texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from benchmarks.passing import cards, corpus_of, opened, passed
from finetrace.data import Batch, batches, padded_tokens, shards
from finetrace.data.corpus import Corpus
from finetrace.engine import PAIR, Contrast, Shape
from finetrace.methods.activation_analysis import Config
from finetrace.methods.activation_analysis.figures import QUANTITIES
from finetrace.methods.activation_analysis.result import Result
from finetrace.methods.activation_analysis.spaces import layers_kept
from finetrace.methods.activation_analysis.summarise import QUANTILES
from finetrace.models import Hidden, Pair

METHOD = "activation_analysis"
_CONTRAST = Contrast(PAIR, "tuned")
# The corpus is read once, and as so many times as many texts.
_TIMES = (4, 16)
# 1 - cosine loses its digits where it is formed in float32; what is formed otherwise is told by the name.
_ROUNDED = "cosine_distance"
_EQUAL = 1e-5
MOST = 1.5


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    @cache
    def pair() -> Pair:
        return opened(folder, dtype)

    @cache
    def corpus(times: int) -> Corpus:
        return corpus_of(pair(), preset, times)

    def ours(times: int = 1) -> Work:
        texts, card = corpus(times), cards([METHOD])
        return lambda: passed(pair(), texts, card, [_CONTRAST], Shape(batch_size=preset.batch), folder)

    def naive(times: int = 1) -> Work:
        return partial(_naive, pair(), corpus(times), preset.batch)

    def forward() -> Work:
        return partial(_forward, pair(), corpus(1), preset.batch)

    def floor() -> Work:
        padded = padded_tokens(corpus(1), preset.batch)
        shapes = [(padded, i, o) for _ in range(2 * preset.layers) for i, o in preset.block_shapes()]
        return products(shapes, dtype)

    def accuracy() -> list[dict[str, float]]:
        texts, shape = corpus(1), Shape(batch_size=preset.batch)
        observers = passed(pair(), texts, cards([METHOD]), [_CONTRAST], shape, folder)
        return [apart(_naive(pair(), texts, preset.batch), observers)]

    trunk = 2 * preset.trunk_flop(padded_tokens(corpus(1), preset.batch))
    states = 2 * preset.layers * preset.d * corpus(1).scored * 4
    arms = {
        "naive": Arm(naive, trunk, {"held": states}),
        "ours": Arm(ours, trunk),
        "forward": Arm(forward, trunk),
        "floor": Arm(floor, trunk),
    }
    longer = {
        f"{name}_x{times}": Arm(partial(make, times), times * trunk)
        for name, make in (("naive", naive), ("ours", ours))
        for times in _TIMES
    }
    return Case(
        "activations",
        arms,
        "work",
        goal,
        ("naive", "ours", "forward"),
        accuracy=accuracy,
        reference="naive",
        longer=longer,
        notes=lambda: {"texts": len(corpus(1)), "tokens": corpus(1).scored},
    )


def _read(pair: Pair, corpus: Corpus, size: int) -> Iterator[tuple[Batch, Hidden, Hidden]]:
    wanted = tuple(range(pair.n_layers))
    for shard in shards(corpus):
        for batch in batches(corpus, shard, size):
            base, tuned = (
                pair.trunk(side, batch.ids, batch.attention, wanted, False) for side in ("base", "tuned")
            )
            yield batch, base, tuned


@torch.inference_mode()
def _forward(pair: Pair, corpus: Corpus, size: int) -> None:
    """Both sides' states at every layer, of which nothing is made."""
    for _ in _read(pair, corpus, size):
        pass


@torch.inference_mode()
def _naive(pair: Pair, corpus: Corpus, size: int) -> dict[str, Tensor]:
    """mean [layer, quantity] and quantiles [layer, share, quantity], first tokens apart; covariances of both sides together
    at the layers that `activation_analysis` keeps them of."""
    kept: list[Tensor] = []
    for batch, *sides in _read(pair, corpus, size):
        later = batch.keep & (batch.position > 0)
        wide = [torch.stack([side.layers[i][later] for i in range(pair.n_layers)]) for side in sides]
        kept.append(torch.stack(wide).float())
    base, tuned = torch.cat(kept, 2)
    norms = [x.norm(dim=-1) for x in (tuned - base, base, tuned)]
    found = {
        "relative_norm": norms[0] / norms[1],
        "difference_norm": norms[0],
        _ROUNDED: 1 - F.cosine_similarity(base, tuned, dim=-1),
        "base_norm": norms[1],
        "tuned_norm": norms[2],
    }
    figures = torch.stack([found[name] for name in QUANTITIES], -1)
    config, d = Config(), pair.d_model
    layers = layers_kept(pair.n_layers, d, pair.n_layers - 1, config.memory)
    return {
        "mean": figures.mean(1),
        "quantiles": figures.sort(1).values[:, [int(q * (figures.shape[1] - 1)) for q in QUANTILES]],
        "spaces": torch.stack([torch.cov(torch.cat([base[i], tuned[i]], 1).T) for i in layers]),
    }


def apart(naive: Mapping[str, Tensor], observers: Mapping[tuple[str, str], Any]) -> dict[str, float]:
    """Of each quantity, the largest relative difference of a layer's mean; and of a quantile, over all but cosines."""
    result: Result = observers[METHOD, PAIR].result()
    means = _relative(naive["mean"], result.everywhere.mean).amax(0)
    quantiles = _relative(naive["quantiles"], result.everywhere.quantiles).amax((0, 1))
    others = [i for i, name in enumerate(QUANTITIES) if name != _ROUNDED]
    row = {name: float(means[i]) for i, name in enumerate(QUANTITIES)}
    row |= {"quantiles": float(quantiles[others].max()), "sketch_error": result.sketch_error}
    return {name: float(f"{value:.3g}") for name, value in row.items()}


def _relative(theirs: Tensor, ours: Any) -> Tensor:
    exact = torch.from_numpy(ours)
    return (theirs.double() / exact - 1).abs()


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    """cost: CPU time over that of the forwards alone."""
    arms, (row,) = figures["arms"], figures["accuracy"]
    costs = {name: round(arms[name]["seconds"] / arms["forward"]["seconds"], 3) for name in ("naive", "ours")}
    equal = all(row[name] <= _EQUAL for name in QUANTITIES if name != _ROUNDED)
    return {
        "name": f"activation_analysis in a pass: <= {MOST} times the forwards; means those of the whole tensors",
        "measured": costs,
        "equal": equal,
        "reached": costs["ours"] <= MOST and equal,
    }
