"""Rows with a known sparse truth: sums of a few of many directions, some of which one model alone has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.training import Stream

D, FEATURES, ACTIVE = 32, 64, 3
TUNED_ONLY, BASE_ONLY = 10, 6


@dataclass(frozen=True)
class Planted:
    """rows: [row, model, d]; directions: [feature, d] of norm 1; truth: whose each feature is."""

    rows: Tensor
    directions: Tensor
    truth: list[str]


def planted(models: int, rows: int, *, rarer: float = 1.0, weaker: float = 1.0, seed: int = 0) -> Planted:
    """About ACTIVE features a row, of sizes 1 to 2, and a little noise. rarer, weaker: how often the tuned model's own
    are there and how large they are, relative to the others."""
    # Not a seed that a training begins with: the first directions would be those that were planted.
    g = torch.Generator().manual_seed(10_000 + seed)
    directions = torch.randn(FEATURES, D, generator=g)
    directions /= directions.norm(dim=1, keepdim=True)
    often = torch.full((FEATURES,), ACTIVE / FEATURES)
    truth = ["shared"] * FEATURES
    if models == 2:
        truth[: TUNED_ONLY + BASE_ONLY] = ["tuned-only"] * TUNED_ONLY + ["base-only"] * BASE_ONLY
        often[:TUNED_ONLY] *= rarer
    codes = (torch.rand(rows, FEATURES, generator=g) < often) * (1 + torch.rand(rows, FEATURES, generator=g))
    if models == 2:
        codes[:, :TUNED_ONLY] *= weaker
    lacks = {0: "tuned-only", 1: "base-only"}
    sides = [
        codes * torch.tensor([float(models == 1 or one != lacks[m]) for one in truth]) for m in range(models)
    ]
    x = torch.stack([side @ directions for side in sides], 1)
    return Planted(0.3 + x + 0.02 * torch.randn(x.shape, generator=g), directions, truth)


def shuffled(rows: Tensor, portion: int = 512) -> Stream:
    """The rows in an order of each epoch's own."""

    def stream(epoch: int):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch))
        for some in order.split(portion):
            yield rows[some]

    return stream


def matches(found: Dictionary, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Per direction, the highest cosine with any latent's larger decoder, and which latent that is; likewise see `f1`."""
    return _cosines(found, directions).max(1)


def f1(found: Dictionary, used: Tensor, truth: Planted, tag: str) -> float:
    """Of tagging: precision over latents in use with that tag, recall over planted features; a match is a cosine of 0.9."""
    cosines, tags = _cosines(found, truth.directions), found.tags()
    best, feature = cosines.max(0)
    tagged = [j for j in range(len(tags)) if tags[j] == tag and used[j]]
    right = sum(float(best[j]) > 0.9 and truth.truth[int(feature[j])] == tag for j in tagged)
    cosine, latent = cosines.max(1)
    wanted = [i for i, owner in enumerate(truth.truth) if owner == tag]
    seen = sum(float(cosine[i]) > 0.9 and tags[int(latent[i])] == tag for i in wanted)
    precision, recall = right / max(1, len(tagged)), seen / len(wanted)
    return 2 * precision * recall / (precision + recall) if right and seen else 0.0


def _cosines(found: Dictionary, directions: Tensor) -> Tensor:
    norms = found.decoder.norm(dim=2)
    larger = found.decoder[norms.argmax(0), torch.arange(found.latents)]
    return directions @ (larger / larger.norm(dim=1, keepdim=True).clamp_min(1e-9)).T
