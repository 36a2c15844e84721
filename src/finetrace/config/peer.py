"""What the diffing-toolkit's files and words become here: keys with another name, and keys without use.

A key without use is accepted and said in a note of the run, never passed over in silence; one that would change what is
measured, and that finetrace cannot do, is an error wherever it is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["DIFFERS", "METHOD_MOVED", "MOVED", "NOT_BUILT", "Unused", "translated", "unused", "unused_option"]

NOT_BUILT = ("activation_oracle", "weight_amplification")
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

_DICTIONARY_MOVED: Mapping[str, str] = {
    "training.expansion_factor": "expansion",
    "training.k": "k",
    "training.batch_size": "batch",
    "training.epochs": "epochs",
    "training.max_steps": "steps",
    "model.type": "kind",
}

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
    "pca": {"training.n_components": "components"},
    "sae_difference": _DICTIONARY_MOVED,
    "crosscoder": {
        **_DICTIONARY_MOVED,
        "training.lr": "lr",
        "model.code_normalization": "code_norm",
    },
}
"""Method -> its option there -> its option here."""

DIFFERS: Mapping[str, tuple[frozenset[str], str]] = {
    "crosscoder": (
        frozenset({"delta", "exclusive"}),
        "a crosscoder is of the Delta form here; plain, as there, it is with diffing.method.delta=0 diffing.method.exclusive=0",
    )
}
"""Method -> options here, unknown there, whose defaults make it another method; and what a file from there is told of that."""

_VALUES: Mapping[str, Mapping[Any, Any]] = {"kind": {"batch-top-k": "batch_topk"}}
"""An option here -> what its values are called there -> and here."""

_STREAMED = "methods read the texts themselves, with nothing stored in between"
_TEXTS = "the texts are those that data= names"
_LOADED = "both sides are loaded once, by transformers"
_SENT = "nothing is sent anywhere"
_ALONE = "a report holds all that was measured"
_JUDGED = "judges are named by judges=, the agent by diffing.evaluation.agent.model"
_NOT_YET = "it is not built yet"
_ONE_WAY = "there is one way to do it here"
_SHELVED = "what is on the shelf is used as it is"
_PASSAGES = "diffing.method.passages says how many texts are shown"
_CUT = "tokens are those of the texts: data.max_samples and data.context_len cut them"

_UNUSED: Mapping[str, str] = {
    "wandb*": _SENT,
    "hf_name": _SENT,
    "verbose": "--quiet of the command says how much is told",
    "torch_precision": "products are exact (no TF32)",
    "hydra*": "finetrace composes and sweeps itself",
    "chat_dataset*": _TEXTS,
    "pretraining_dataset*": _TEXTS,
    "pipeline.output_dir": "all lands in infrastructure.storage.base_dir",
    "preprocessing.activation_store_dir": "preprocessing.store=true keeps hidden states, in preprocessing.store_dir",
    "preprocessing.max_tokens_per_dataset_*": "the texts are cut by rows and by context_len",
    "preprocessing.batch_size": "texts at once are diffing.batch_size",
    "preprocessing.dtype": "where hidden states are kept, preprocessing.store_dtype says how",
    "preprocessing.store_tokens": "the texts are read again, and their tokens with them",
    "preprocessing.overwrite": "what is stored, whole and of the same is used as it is",
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
    "overwrite": _SHELVED,
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

_DICTIONARY_UNUSED: Mapping[str, str] = {
    "training.num_samples": _CUT,
    "training.num_validation_samples": "diffing.method.held is the share of the texts that is held out",
    "training.validate_every_n_steps": "held-out texts are looked at ten times in a training",
    "training.local_shuffling": "tokens are shuffled as they come",
    "training.local_shuffling_shard_size": "tokens are shuffled as they come",
    "training.workers": _STREAMED,
    "training.overwrite": _SHELVED,
    "datasets.normalization": "states are always centred and scaled, by the tokens that are trained on",
    "optimization.resample_steps": "dead latents learn from what the others leave over, and none is drawn anew",
    "optimization.warmup_steps": "the first twentieth of the steps warms up",
    "analysis.enabled": "a dictionary is always analysed",
    "analysis.latent_scaling": "latents are always scaled, on the texts that are held out",
    "analysis.latent_activations": f"{_PASSAGES}, diffing.method.examples how many of every latent are kept in a file",
    "analysis.latent_steering": _NOT_YET,
    "upload": f"{_SENT}; diffing.method.keep=true saves the dictionary",
}

_METHOD_UNUSED: Mapping[str, Mapping[str, str]] = {
    "activation_analysis": {
        "method_params.num_workers": _STREAMED,
        "method_params.skip_first_n_tokens": "first tokens are always apart, in a table of their own",
        "analysis.statistics": "all of them are reported",
        "analysis.max_activating_examples": _PASSAGES,
    },
    "pca": {
        "training.batch_size": "the sums are exact, whatever is added up at once",
        "training.num_samples": _CUT,
        "training.local_shuffling": "the sums are exact, in whatever order",
        "training.local_shuffling_shard_size": "the sums are exact, in whatever order",
        "training.workers": _STREAMED,
        "training.overwrite": _SHELVED,
        "datasets.ignore_first_n_tokens_per_sample_during_training": "the first token of a text is always apart",
        "datasets.normalization": "one factor for all tokens turns no direction; diffing.method.normalise is by token",
        "analysis.enabled": "components are always analysed",
        "analysis.max_activating_examples": _PASSAGES,
        "analysis.component_steering": "diffing.method.steer says along how many directions, diffing.method.strength how far",
    },
    "sae_difference": {
        **_DICTIONARY_UNUSED,
        "training.lr": "the learning rate goes by the number of latents",
        "training.encoder_init_norm": _ONE_WAY,
    },
    "crosscoder": {
        **_DICTIONARY_UNUSED,
        "training.mu": "the L1 term is in other units here, and diffing.method.l1 is its weight",
        "training.k_max": "k is the same from the first step",
        "training.k_annealing_steps": "k is the same from the first step",
        "training.auxk_alpha": "what dead latents learn from weighs 1/32",
        "model.same_init_for_all_layers": "both models' parts begin alike",
        "model.norm_init_scale": _ONE_WAY,
        "model.init_with_transpose": "the encoder begins as the decoder turned over",
    },
}
"""Method -> its option there, or the part of the file that it is in -> why it has no use here."""

_TURNED = (
    "directions are of tuned - base; of base - tuned they are the same with the sign turned: leave it out"
)
_ONLY: Mapping[str, Mapping[str, tuple[Any, str]]] = {
    "sae_difference": {"training.target": ("difference_ftb", _TURNED)},
    "pca": {
        "training.target": (
            "difference_ftb",
            f"{_TURNED}. Of the base and of the tuned model alone there are none: how much each varies along a direction of "
            "the change is in the tables",
        )
    },
}
"""Method -> its option there -> the one value that is done here, and why no other."""


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


def translated(option: str, value: Any) -> Any:
    """A value under the name that it has here. option: by its name here."""
    known = _VALUES.get(option, {})
    return known.get(value, value) if isinstance(value, str) else value


def unused_option(method: str, option: str, value: Any, *, typed: bool) -> tuple[str, Unused | None] | None:
    """As `unused`, for a dotted option of a method: the part of it that is meant, and what is to be said of that, if
    anything. typed: by a word, which is an error where it asks for what is not built yet; in a file it is one of many that
    came with it."""
    only = _ONLY.get(method, {}).get(option)
    if only is not None:
        return option, None if value in (None, only[0]) else Unused(only[1], wrong=True)
    known = _METHOD_UNUSED.get(method, {})
    parts = option.split(".")
    for part in (".".join(parts[:many]) for many in range(len(parts), 0, -1)):
        why = known.get(part)
        if why is None and "." not in part:
            why = _UNUSED_OPTIONS.get(part)
        if why is not None:
            return part, Unused(why, wrong=typed and why is _NOT_YET and value not in (None, False))
    return None
