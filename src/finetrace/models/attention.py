"""Which attention a model runs with where none is asked for."""

from __future__ import annotations

from typing import Any

__all__ = ["named_attention"]


def named_attention(config: Any, asked: str | None) -> str | None:
    """`asked`, or None where that is what the architecture runs with anyway: both are the same work, to the last bit.

    config: the model's own, of transformers.
    """
    return None if asked == _usual(config) else asked


def _usual(config: Any) -> str | None:
    """As transformers chooses: torch's fused kernel where the class can dispatch it, else its plain one; None of a class
    that it does not know."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as known

    if type(config) not in known:
        return None
    kind: Any = known[type(config)]
    return "sdpa" if kind._supports_sdpa else "eager"
