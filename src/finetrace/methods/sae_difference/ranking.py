"""The door of the ground-truth benchmark: tokens that the latents and the constant part write, best first."""

from __future__ import annotations

from collections.abc import Sequence

from finetrace.dictionaries.words import moved_most
from finetrace.methods.sae_difference.result import Result


def top_tokens(result: Result, where: str, n: int = 20, nulls: Sequence[Result] = ()) -> tuple[int, ...]:
    """Ids of the `n` tokens that all latents and the constant part push up most together, each at its usual strength; none where there
    is no difference. They are of all slices together, so that `where` moves nothing."""
    return moved_most(result, n)
