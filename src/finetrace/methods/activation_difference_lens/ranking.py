"""The door of the ground-truth benchmark: promoted tokens at the fixed place, best first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetrace.methods.activation_difference_lens.readout import best
from finetrace.methods.activation_difference_lens.result import Found, Result
from finetrace.stats.moderated import z_against


def logits(found: Found, result: Result) -> np.ndarray | None:
    """Centred logits [token] at the configured place and layer, in the order of `result.token_ids`."""
    at = np.flatnonzero(result.layers_read == result.layer)
    return found.logits[int(at[0])] if len(found.logits) else None


def z_nulls(found: np.ndarray | None, nulls: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """z [token] of a read-out against the nulls' at the same place; None with fewer than two of them."""
    known = [null for null in nulls if null is not None]
    if found is None or len(known) < 2:
        return None
    return z_against(found, np.stack(known))


def top_tokens(result: Result, where: str, n: int = 20, nulls: Sequence[Result] = ()) -> tuple[int, ...]:
    """Ids of the `n` most promoted tokens of slice `where`, best first; none where there is no difference."""
    found = logits(result.found[where], result)
    if found is None:
        return ()
    return tuple(int(i) for i in result.token_ids[best(found, n)])
