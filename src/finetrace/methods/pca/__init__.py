"""The card of `pca`: the directions in which the hidden states changed, the mean change kept as the first of them."""

from __future__ import annotations

from dataclasses import dataclass

from finetrace.core.card import Method, Needs
from finetrace.core.errors import BadInput


@dataclass(frozen=True)
class Config:
    """layers: relative, 0 the first and 1 the last; the numbers are about the first that is named, the others are shown
    beside it. components: how many beside the mean.

    read: how many directions, the mean among them, are read as words and looked up in the texts. tokens: words of each end
    of a direction. passages: texts of each end. normalise: each token's change and states are divided by the norm of the
    base's state there, so that no token weighs more than another.

    steer: the first so many directions are added to both models' states while they write on from a few of the texts; 0 for
    none. strength: how far, as times the change's own size along the direction.
    """

    layers: tuple[float, ...] = (1.0, 0.5)
    components: int = 8
    read: int = 4
    tokens: int = 12
    passages: int = 2
    normalise: bool = False
    steer: int = 0
    strength: float = 4.0

    def __post_init__(self) -> None:
        if not self.layers or not all(0.0 <= layer <= 1.0 for layer in self.layers):
            raise BadInput(
                f"pca.layers is {list(self.layers)}; it is one or more relative layers from 0 (first) to 1 (last)."
            )
        if self.components < 1 or self.tokens < 1 or self.passages < 0:
            raise BadInput("pca needs components >= 1, tokens >= 1 and passages >= 0.")
        if not 1 <= self.read <= self.components + 1:
            raise BadInput(
                f"pca.read is {self.read}; of a mean and {self.components} components, 1 to {self.components + 1} can "
                "be read."
            )
        if self.steer < 0 or self.strength <= 0:
            raise BadInput("pca needs steer >= 0 and strength > 0.")
        if self.steer and self.normalise:
            raise BadInput(
                "pca.steer adds directions of the states themselves: not together with pca.normalise."
            )


KEYS = (
    ("top_component_ratio", "times the base's variance along it"),
    ("component_variance", "of the base's variance"),
    ("concentration", "share"),
    ("mean_share", "share"),
)

METHOD = Method(
    name="pca",
    version=1,
    summary="The few directions in which the hidden states changed: sizes, stability, words and passages.",
    config=Config,
    needs=lambda config: Needs(layers=config.layers, steps=True, floor=True),
    primary="top_component_ratio",
    # A ratio of variances goes with the square of a change, as KL does.
    margin=2.0,
    keys=KEYS,
    papers=(
        "Pearson 1901 (principal components)",
        "nostalgebraist 2020 (logit lens)",
        "Bjorck & Golub 1973 (angles between subspaces)",
    ),
)
