"""The door of the ground-truth benchmark: tokens that the latents and the constant part write, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.methods.sae_difference.result import Result


def most(nulls: Sequence[Result]) -> np.ndarray | None:
    """The largest centred logit of each token, [token], that a shown latent of any null gives it; None without."""
    rows = [null.peaks for null in nulls if len(null.peaks)]
    return np.stack(rows).max(0) if rows else None


def top_tokens(result: Result, where: str, n: int = 20, nulls: Sequence[Result] = ()) -> tuple[int, ...]:
    """Ids of the `n` tokens whose logit is moved most by one of the shown latents, or by the constant part, at its usual
    strength; none where there is no difference. Latents are of all slices together, so `where` moves nothing."""
    if not result.reach.any():
        return ()
    order = np.argsort(-result.reach, kind="stable")[:n]
    return tuple(int(i) for i in result.token_ids[order])
