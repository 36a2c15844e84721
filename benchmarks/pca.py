"""The case `pca`: exact principal components of rows that come batch by batch, beside scikit-learn's IncrementalPCA.

The peer's default keeps all components, as ours does (a covariance forgets none); `peer_32` keeps the 32 that are compared.
Both see the same float32 rows, about a mean that is large beside what varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from finetrace.engine.covariance import Components, Covariance, components, principal_angles

KEPT = 32
# At most this wide: the peer decomposes every batch, which takes minutes on wider ones.
_WIDEST, _ROWS_PER_D, _BATCHES = 512, 32, 4
_MEAN = 10.0


def case(preset: Preset, dtype: torch.dtype) -> Case:
    """dtype: unused, as the peer takes float32 only."""
    x = rows(preset)
    n, d = x.shape
    product = 2 * n * d * d
    batch = n // _BATCHES * d * 4

    def arm(work: Work, held: int) -> Arm:
        return Arm(lambda: torch.inference_mode()(work), product, {"held": held})

    arms = {
        "peer": arm(lambda: peer(x), d * d * 8 + batch),
        "peer_32": arm(lambda: peer(x, KEPT), KEPT * d * 8 + batch),
        "ours": arm(lambda: ours(x), d * d * 8),
        "ours_all": arm(lambda: ours(x, d), d * d * 8),
        "floor": Arm(lambda: products([(d, n, d)], torch.float32), product),
    }
    return Case("pca", arms, "work", goal, ("ours",), lambda: accuracy(preset))


def rows(preset: Preset) -> Tensor:
    """float32 [row, d]: variances that fall off as a power of their place, as those of hidden states do."""
    d = min(_WIDEST, 2 * preset.d)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    scales = torch.arange(1, d + 1, dtype=torch.float32) ** -0.5
    varied = torch.randn(_ROWS_PER_D * d, d, generator=generator) * scales @ basis
    return varied + _MEAN * torch.randn(d, generator=generator)


def peer(x: Tensor, kept: int | None = None) -> Components:
    """Incremental singular value decompositions, a batch at a time."""
    from sklearn.decomposition import IncrementalPCA

    found = IncrementalPCA(n_components=kept)
    for part in x.split(len(x) // _BATCHES):
        found.partial_fit(part.numpy())
    values, vectors = (
        np.asarray(a, dtype=np.float64) for a in (found.explained_variance_, found.components_)
    )
    return Components(torch.from_numpy(values[:KEPT]), torch.from_numpy(vectors[:KEPT]))


def ours(x: Tensor, kept: int = KEPT) -> Components:
    found = Covariance(x.shape[1])
    for part in x.split(len(x) // _BATCHES):
        found.see(part)
    return components(found.matrix(ddof=1), kept)


def accuracy(preset: Preset) -> list[dict[str, float]]:
    """Against a dense decomposition in float64, of the first 32: largest relative error of a variance, and largest angle
    between the spaces, radians."""
    x = rows(preset)
    exact = components(torch.cov(x.double().T), KEPT)
    row: dict[str, float] = {"components": KEPT}
    for name, found in (("peer", peer(x)), ("peer_32", peer(x, KEPT)), ("ours", ours(x))):
        row[f"{name}_variance"] = float((found.values / exact.values - 1).abs().max())
        row[f"{name}_angle"] = float(principal_angles(found.vectors, exact.vectors).max())
    return [{name: float(f"{value:.3g}") for name, value in row.items()}]


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    arms, (errors,) = figures["arms"], figures["accuracy"]
    ratio = arms["ours"]["ratio"]
    exact = errors["ours_variance"] <= 1e-5 and errors["ours_angle"] <= 1e-4
    return {
        "name": "exact PCA of differences: >= 8 times scikit-learn's IncrementalPCA; variances within 1e-5, space within 1e-4",
        "measured": {"ours": ratio, "variance": errors["ours_variance"], "angle": errors["ours_angle"]},
        "bound": round(arms["peer"]["seconds"] / arms["floor"]["seconds"], 2),
        "reached": ratio["median"] >= 8 and exact,
        "reached_accuracy": exact,
    }
