"""What the diffing-toolkit's files and words become here: keys with another name, and keys without use.

A key without use is accepted and said in a note of the run, never passed over in silence; one that would change what is
measured, and that finetrace cannot do, is an error wherever it is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["METHOD_MOVED", "MOVED", "NOT_BUILT", "Unused", "unused", "unused_option"]

NOT_BUILT = (
    "activation_oracle",
    "crosscoder",
    "weight_amplification",
)
"""Methods of that toolkit that finetrace does not have yet."""

MOVED: Mapping[str, str] = {
    "out": "infrastructure.storage.base_dir",
    "layers": "preprocessing.layers",
    "diffing.method.batch_size": "diffing.batch_size",
    "diffing.method.in_memory": "diffing.in_memory",
    "diffing.method.max_samples": "data.max_samples",
    "diffing.method.max_tokens_per_sample": "data.context_len",
    "diffing.method.split": "data.split",
    "diffing.method.method_params.batch_size": "diffing.batch_size",
    "diffing.method.method_params.max_samples": "data.max_samples",
    "diffing.method.method_params.max_tokens_per_sample": "data.context_len",
    "diffing.evaluation.agent.num_repeat": "diffing.evaluation.agent.runs",
    "organism.training_dataset": "organism.dataset",
    "model.ignore_first_n_tokens_per_sample_during_training": "model.ignore_first_n_tokens_in_training",
}
"""Dotted key -> what it is here: short names, and those of that toolkit."""

METHOD_MOVED: Mapping[str, Mapping[str, str]] = {
    "activation_difference_lens": {
        "n": "positions",
        "pre_assistant_k": "before",
        "logit_lens.k": "tokens",
    },
    "diff_mining": {
        "logit_extraction.method": "extraction",
        "logit_extraction.logit_lens.layer": "layer",
        "token_ordering.nmf.num_topics": "topics",
        "token_ordering.nmf.orthogonal": "orthogonal",
        "sequence_likelihood_ratio.window_size": "span",
        "sequence_likelihood_ratio.step": "stride",
        "per_token_analysis.token_shortlist": "shortlist",
        "filter_special_tokens": "mask_special",
        "normalize_tokens": "merge_variants",
    },
}
"""Method -> its option there -> its option here."""

_STREAMED = "nothing is stored between the pass over the texts and the results"
_TEXTS = "the texts are those that data= names"
_LOADED = "both sides are loaded once, by transformers"
_SENT = "nothing is sent anywhere"
_ALONE = "a report holds all that was measured"
_JUDGED = "judges are named by judges=, the agent by diffing.evaluation.agent.model"
_NOT_YET = "it is not built yet"
_ONE_WAY = "there is one way to do it here"

_UNUSED: Mapping[str, str] = {
    "wandb*": _SENT,
    "hf_name": _SENT,
    "verbose": "--quiet of the command says how much is told",
    "torch_precision": "products are exact (no TF32)",
    "hydra*": "finetrace composes and sweeps itself",
    "chat_dataset*": _TEXTS,
    "pretraining_dataset*": _TEXTS,
    "pipeline.output_dir": "all lands in infrastructure.storage.base_dir",
    "preprocessing.activation_store_dir": _STREAMED,
    "preprocessing.max_tokens_per_dataset_*": "the texts are cut by rows and by context_len",
    "preprocessing.batch_size": "texts at once are diffing.batch_size",
    "preprocessing.dtype": _STREAMED,
    "preprocessing.store_tokens": _STREAMED,
    "preprocessing.overwrite": _STREAMED,
    "preprocessing.disable_multiprocessing": _STREAMED,
    "preprocessing.*_only": _TEXTS,
    "diffing.results_dir": "results lie on the shelf by base, organism, variant and method",
    "diffing.gpu_memory_utilization": _LOADED,
    "diffing.grading_rubrics*": "one rubric is for all organisms",
    "diffing.evaluation.name": _ONE_WAY,
    "diffing.evaluation.overwrite": "what is on the shelf is never graded twice",
    "diffing.evaluation.grader*": _JUDGED,
    "diffing.evaluation.agent.llm*": _JUDGED,
    "diffing.evaluation.agent.budgets*": "the agent has its own budgets",
    "diffing.evaluation.agent.ask_model*": "the agent has its own tools",
    "diffing.evaluation.agent.hints": "the agent gets no hints",
    "diffing.evaluation.agent.baselines*": "the baseline is always run beside it",
    "infrastructure.storage.checkpoint_dir": "runs train nothing that is kept",
    "infrastructure.storage.logs_dir": "the log is in the manifest of a result",
    "model.ignore_first_n_tokens_per_sample_during_collection": "methods say which positions they leave out",
    "model.no_auto_device_map": "infrastructure.device_map says where a side is",
    "model.vllm_kwargs*": _LOADED,
    "model.text_column": _TEXTS,
    "organism.finetuned_model": "fine-tunes are those of organism.finetuned_models",
    "organism.dataset.streaming": "so many rows are read as are wanted",
    "organism.dataset.description": _ALONE,
}
"""Dotted key (with wildcards) -> why it has no use here."""

_CHANGES: Mapping[str, str] = {
    "model.token_level_replacement": "tokens are never replaced by others",
    "model.steering_vector": "models are read as they are, without a steering vector",
    "model.steering_layer": "models are read as they are, without a steering vector",
    "organism.finetuned_models.*.steering_*": "models are read as they are, without a steering vector",
}
"""Dotted key -> why finetrace cannot do what it asks for."""

_UNUSED_OPTIONS: Mapping[str, str] = {
    "requires_preprocessing": _STREAMED,
    "overwrite": "what is on the shelf is used as it is",
    "datasets": _TEXTS,
    "num_workers": _ONE_WAY,
    "debug_print_samples": _ALONE,
    "logit_lens": _ALONE,
    "logit_extraction": _ONE_WAY,
    "token_ordering": "all orderings are reported; diffing.method.ordering says which one tables go by",
    "ignore_padding": "padding is never counted",
    "max_vocab_size": "vocabularies are aligned by token",
    "drop_new_tokens": "vocabularies are aligned by token",
    "pre_assistant_k": "positions before an answer are of activation_difference_lens",
    "filter_pure_punctuation": _ONE_WAY,
    "token_relevance": "nothing is graded by a model in this method",
    "positional_kde": _NOT_YET,
    "sequence_likelihood_ratio": _ONE_WAY,
    "per_token_analysis": _ONE_WAY,
    "visualization": _ALONE,
    "auto_patch_scope": _NOT_YET,
    "steering": _NOT_YET,
    "causal_effect": _NOT_YET,
    "agent": _JUDGED,
    "method_params": _ONE_WAY,
    "analysis": _ALONE,
}
"""First part of a method's option there -> why it has no use here."""


@dataclass(frozen=True)
class Unused:
    """A key that is known and has no use. why: in words. wrong: it asks for what cannot be done."""

    why: str
    wrong: bool = False


def unused(name: str, value: Any) -> Unused | None:
    """What is to be said of a dotted key that is not in the tree; None where it is not known either."""
    for keys, wrong in ((_CHANGES, True), (_UNUSED, False)):
        for key, why in keys.items():
            if name == key or fnmatchcase(name, key):
                return Unused(why, wrong and value not in (None, False, {}, []))
    return None


def unused_option(option: str, typed: Any = None) -> Unused | None:
    """As `unused`, for a dotted option of a method. typed: what a word asks for, which is an error where it is not built
    yet; in a file it is one of many that came with it."""
    why = _UNUSED_OPTIONS.get(option.split(".")[0])
    return None if why is None else Unused(why, wrong=why is _NOT_YET and typed not in (None, False))
