"""What files and words of the diffing-toolkit's schema become here: keys that we call otherwise, and keys without use.

A key without use is accepted and said in a note of the run, never passed over in silence.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

__all__ = ["METHOD_IGNORED", "METHOD_MOVED", "MOVED", "NOT_BUILT", "ignored", "method_ignored"]

NOT_BUILT = (
    "activation_analysis",
    "activation_oracle",
    "crosscoder",
    "pca",
    "sae_difference",
    "weight_amplification",
)
"""Methods of that toolkit that finetrace does not have yet."""

MOVED: dict[str, str] = {
    "out": "infrastructure.storage.base_dir",
    "layers": "preprocessing.layers",
    "diffing.method.batch_size": "diffing.batch_size",
    "diffing.method.method_params.batch_size": "diffing.batch_size",
    "diffing.method.in_memory": "diffing.in_memory",
    "diffing.method.max_samples": "data.max_samples",
    "diffing.method.method_params.max_samples": "data.max_samples",
    "diffing.method.max_tokens_per_sample": "data.context_len",
    "diffing.method.method_params.max_tokens_per_sample": "data.context_len",
}
"""Dotted key -> the one that it is here."""

METHOD_MOVED: dict[str, dict[str, str]] = {
    "activation_difference_lens": {
        "n": "positions",
        "pre_assistant_k": "before",
        "logit_lens.k": "tokens",
    },
    "diff_mining": {
        "logit_extraction.method": "extraction",
        "logit_extraction.logit_lens.layer": "layer",
        "top_k_tokens": "tokens",
    },
}
"""Method -> its option there -> its option here."""

_STREAMED = "without use: methods read both sides in one pass, and nothing is stored in between"
_DASHBOARD = "without use: a report is one file"
_SAMPLES = "without use: the texts are those of data="
_LOADED = "without use: both sides are loaded once, by transformers"

_IGNORED: dict[str, str] = {
    "wandb": "without use: nothing is sent anywhere",
    "wandb.*": "without use: nothing is sent anywhere",
}


def ignored(name: str) -> str | None:
    """Why a dotted key is accepted though it changes nothing; None where it is not known."""
    found = _IGNORED.get(name)
    if found is not None:
        return found
    return next((why for key, why in _IGNORED.items() if "*" in key and fnmatchcase(name, key)), None)


METHOD_IGNORED: dict[str, str] = {}


def method_ignored(option: str) -> str | None:
    """Why an option of a method there is accepted though it changes nothing here."""
    head = option.split(".")[0]
    return METHOD_IGNORED.get(option) or METHOD_IGNORED.get(head)
