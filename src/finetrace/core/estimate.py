"""One reported figure: never without its n, never 0 where there is no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with its uncertainty.

    value: None where there is no data. unit: e.g. "nats/token". n: observations (tokens). clusters: independent texts, or
    None for a figure of the weights alone, into which no sample of texts went: it is exact, and n is of weights.
    low, high: 95% interval over texts, None where there are too few. replicates: bootstrap replicates, aligned between
    contrasts that read the same texts, so that ratios are paired; None where none were drawn.
    """

    value: float | None
    unit: str
    n: int
    clusters: int | None
    low: float | None = None
    high: float | None = None
    replicates: np.ndarray | None = None

    @property
    def texts(self) -> int:
        """How many independent texts stand behind it: 0 for a figure of the weights alone."""
        return self.clusters or 0
