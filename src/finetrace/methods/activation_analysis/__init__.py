"""The card of `activation_analysis`: how far the hidden states moved, token by token, at every layer."""

from __future__ import annotations

from dataclasses import dataclass

from finetrace.core.card import ALL, Method, Needs
from finetrace.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """layer: of the numbers, the histograms and the passages; relative, 0 the first, 1 the last. passages: how many texts are
    shown per slice, by their mean and as many by their largest token.

    window: tokens of a text that are compared with one another for cka_distance. directions: how many leading directions the
    principal angles are between (0: no table of spaces). memory: megabytes that the covariances behind that table may hold per
    contrast; as many layers are kept as fit.
    """

    layer: float = 1.0
    passages: int = 3
    window: int = 256
    directions: int = 8
    memory: int = 128

    def __post_init__(self) -> None:
        name = "activation_analysis"
        if not 0.0 <= self.layer <= 1.0:
            raise BadInput(f"{name}.layer is {self.layer}; it is relative, from 0 (first) to 1 (last).")
        if self.passages < 0 or self.directions < 0 or self.memory < 0:
            raise BadInput(f"{name} needs passages, directions and memory >= 0.")
        if self.window < 4:
            raise BadInput(
                f"{name}.window is {self.window}; fewer than 4 tokens have no similarity to compare."
            )


METHOD = Method(
    name="activation_analysis",
    version=1,
    summary="How far the hidden states moved, token by token: difference, direction, norms and geometry at every layer.",
    config=Config,
    needs=lambda config: Needs(layers=ALL),
    primary="relative_norm",
    # A norm, where KL goes with the square of a change: the margin is the root of KL's.
    margin=1.41,
    levels=("base_norm", "tuned_norm"),
    keys=(
        ("relative_norm", "of the base's norm"),
        ("difference_norm", "norm"),
        ("cosine_distance", "1 - cosine"),
        ("base_norm", "norm"),
        ("tuned_norm", "norm"),
        ("cka_distance", "1 - CKA"),
    ),
    papers=(
        "Kornblith et al. 2019 (Similarity of neural network representations revisited)",
        "Song et al. 2012 (unbiased HSIC)",
        "Nguyen et al. 2021 (minibatch CKA)",
        "Sun et al. 2024 (Massive activations in large language models)",
        "Masson et al. 2019 (DDSketch)",
    ),
)
