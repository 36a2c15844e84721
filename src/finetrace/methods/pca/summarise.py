"""From sums to a Result: directions, how much lies along them, how well they are known, and their words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.engine import Subject
from finetrace.engine.covariance import merged, participation_ratio, principal_angles
from finetrace.methods.pca import Config
from finetrace.methods.pca.halves import Moments, across, half, moments, nothing
from finetrace.methods.pca.places import PLACES, REST
from finetrace.methods.pca.readout import Reader
from finetrace.methods.pca.result import STEERED, Layer, Result
from finetrace.methods.pca.sums import Sums


def summarise(config: Config, subject: Subject, sums: Mapping[int, Sums], lost: Tensor) -> Result:
    """sums: by layer, the one that the numbers are about first. lost: int64 [slice]."""
    reader = Reader(subject, config.tokens)
    first = next(iter(sums.values()))
    made = {layer: _layer(config, subject.slices, layer, one, reader) for layer, one in sums.items()}
    parts, found = next(iter(made.values()))
    return Result(
        numbers=across(first, parts, found.halves),
        slices={name: nothing() for name in subject.slices},
        layers=tuple(layer for _, layer in made.values()),
        passages=(),
        apart=_apart(first),
        token_ids=reader.token_ids,
        unscored={name: int(lost[i]) for i, name in enumerate(subject.slices)},
        normalised=config.normalise,
        steered=Columns({name: [] for name in STEERED}),
    )


def _layer(
    config: Config, slices: tuple[str, ...], layer: int, sums: Sums, reader: Reader
) -> tuple[tuple[Moments, Moments], Layer]:
    everything = merged(sums.difference) or sums.difference[0]
    whole = moments(everything, config.components)
    parts = moments(sums.difference[0], config.components), moments(sums.difference[1], config.components)
    base, tuned = sums.base.matrix().nan_to_num(0.0), sums.tuned.matrix().nan_to_num(0.0)
    norm = whole.mean.norm()
    mean = whole.mean / norm if float(norm) > 0 else whole.mean
    rows = torch.cat([mean[None], whole.found.vectors])
    directions = rows.numpy().astype(np.float32)
    ours, theirs = reader.logits(directions[: config.read])
    known = whole.tokens > 0
    made = Layer(
        layer=layer,
        tokens=whole.tokens,
        directions=directions,
        variance=torch.cat([norm.square()[None], whole.found.values]).numpy(),
        base_variance=((rows @ base) * rows).sum(1).numpy(),
        stability=_stability(parts, len(rows)),
        overlap=_overlap(parts),
        square=float(whole.second.trace()) if known else None,
        base_square=float(base.trace()) if known else None,
        tuned_square=float(tuned.trace()) if known else None,
        participation=(
            participation_ratio(whole.matrix),
            participation_ratio(base),
            participation_ratio(tuned),
        ),
        base_mean=sums.base.mean.nan_to_num(0.0).numpy().astype(np.float32),
        rank=everything.rank_limit,
        halves=(half(parts[0], int(sums.texts[0])), half(parts[1], int(sums.texts[1]))),
        logits=ours,
        words=reader.table(ours, theirs, [{"direction": i} for i in range(len(ours))]),
        by_slice=_by_slice(slices, sums, reader),
    )
    return parts, made


def _stability(parts: tuple[Moments, Moments], count: int) -> np.ndarray:
    """|cosine| between the halves' own directions of the same place in the order; NaN where one has none."""
    one, two = (torch.cat([part.mean[None], part.found.vectors])[:count] for part in parts)
    both = min(len(one), len(two))
    found = np.full(count, np.nan)
    inner = (one[:both] * two[:both]).sum(1).abs()
    sizes = one[:both].norm(dim=1) * two[:both].norm(dim=1)
    known = (sizes > 0).numpy()
    found[:both][known] = (inner / sizes.clamp(min=1e-300)).numpy()[known]
    return found


def _overlap(parts: tuple[Moments, Moments]) -> np.ndarray:
    one, two = (part.found.vectors for part in parts)
    spans = range(1, min(len(one), len(two)) + 1)
    return np.array([float(principal_angles(one[:k], two[:k]).cos().square().mean()) for k in spans])


def _by_slice(slices: tuple[str, ...], sums: Sums, reader: Reader) -> Columns:
    """The mean change of each slice that has tokens, read as words."""
    tokens = sums.tokens[REST].double()
    seen = tokens.nonzero()[:, 0]
    means = (sums.mean[seen] / tokens[seen, None]).numpy()
    base = (sums.energy[REST, seen, 1] / tokens[seen]).sqrt().numpy()
    size = np.divide(np.linalg.norm(means, axis=1), base, out=np.zeros(len(seen)), where=base > 0)
    heads: list[dict[str, object]] = [
        {"slice": slices[i], "size": float(size[row])} for row, i in enumerate(seen.tolist())
    ]
    return reader.table(*reader.logits(means), heads)


def _apart(sums: Sums) -> Columns:
    tokens = sums.tokens.sum(1)
    mean = (sums.energy.sum(1) / tokens.clamp(min=1)[:, None]).sqrt().numpy()
    return Columns(
        {"place": list(PLACES), "tokens": tokens.numpy(), "change": mean[:, 0], "base": mean[:, 1]}
    )
