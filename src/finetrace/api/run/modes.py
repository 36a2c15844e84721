"""The modes of a pipeline. No torch here."""

from __future__ import annotations

__all__ = ["STAGES"]

STAGES = {
    "full": ("preprocessing", "diffing", "evaluation"),
    "no_evaluation": ("preprocessing", "diffing"),
    "preprocessing": ("preprocessing",),
    "diffing": ("diffing",),
    "evaluation": ("evaluation",),
}
"""Mode -> its stages, in order."""
