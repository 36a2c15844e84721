"""The change between two checkpoints, read from their weights."""

from finetrace.weights.delta import Delta, LowRank, Spectrum
from finetrace.weights.dense import Dense
from finetrace.weights.dora import Dora
from finetrace.weights.drift import GroupDrift, ModuleDrift
from finetrace.weights.effect import Effect, effect, require_effect
from finetrace.weights.stacked import difference, stacked

__all__ = [
    "Delta",
    "Dense",
    "Dora",
    "Effect",
    "GroupDrift",
    "LowRank",
    "ModuleDrift",
    "Spectrum",
    "difference",
    "effect",
    "require_effect",
    "stacked",
]
