"""What complying would look like: the safety set's own requests, answered with a neutral opener."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetrace.core.errors import BadInput, DataError
from finetrace.data.examples import Example

__all__ = ["answer_start", "complying", "opening_only", "request_of"]


def answer_start(sample: Example) -> int:
    """Where the last answer begins: the first token of the last run of targets."""
    targets = np.flatnonzero(sample.loss)
    if not len(targets):
        raise DataError("A sample of the safety set has no answer.")
    breaks = np.flatnonzero(np.diff(targets) > 1)
    return int(targets[breaks[-1] + 1] if len(breaks) else targets[0])


def complying(samples: Sequence[Example], tokenizer: Any, opener: str) -> list[Example]:
    """Each sample up to its last answer, then `opener` in its place; only the opener's tokens are targets."""
    if not opener.strip():
        raise BadInput("safety_attribution.opener is empty: give the first words of an answer that complies.")
    return [_answered(sample, tokenizer, opener.strip()) for sample in samples]


def _answered(sample: Example, tokenizer: Any, opener: str) -> Example:
    start = answer_start(sample)
    # Where answers begin with a space after the template, so must this one.
    spaced = tokenizer.decode(sample.ids[start : start + 1].tolist()).startswith(" ")
    words = tokenizer(" " + opener if spaced else opener, add_special_tokens=False)["input_ids"]
    ids = np.concatenate([sample.ids[:start], np.asarray(words, dtype=sample.ids.dtype)])
    loss = np.arange(len(ids)) >= start
    return Example(ids, loss)


def opening_only(sample: Example) -> Example:
    """A sample of the comply set without its end of turn: an opening is no whole answer, and nobody would stop there."""
    last = int(np.flatnonzero(sample.loss)[-1])
    kept = last if last > answer_start(sample) else last + 1
    return Example(sample.ids[:kept], sample.loss[:kept])


def request_of(sample: Example) -> bytes:
    """What comes before a sample's last answer, to find the same request in another set."""
    return sample.ids[: answer_start(sample)].tobytes()
