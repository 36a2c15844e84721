"""The change between two checkpoints, read from their weights."""

from finetrace.weights.effect import Effect, effect, require_effect

__all__ = ["Effect", "effect", "require_effect"]
