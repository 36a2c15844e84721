"""The words around the numbers: what was compared, how, what was not measured, and what to do next."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetrace.api.names import is_bundled, short_name
from finetrace.api.nulls import STEPS
from finetrace.api.plan import BASE, TUNED, Item, null_names
from finetrace.api.request import PRIVATE, Request
from finetrace.api.watch import Watch
from finetrace.core.findings import AS_THEY_ARE, AT_DOSE, Check, Finding
from finetrace.data import Corpus, DataSource, uses_fallback_template
from finetrace.models import Pair
from finetrace.report.evidence import reason
from finetrace.weights import Effect

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy", "scipy")
# What each kind of method answers; until one of them ran, the report says so before anything else.
QUESTIONS = {
    "Safety: whether refusals of harmful requests, or over-refusals of harmless ones, changed. No behaviour was probed, "
    "so nothing here says that this fine-tune is or is not safe.": {"behaviour"},
    "Capability: whether the tuned model still answers correctly.": {"behaviour", "forgetting"},
    "Generated text: only predictions on given texts were compared, not what either model writes.": {
        "behaviour"
    },
    "What was trained: which tokens, topics and directions moved.": {
        "diff_mining",
        "activation_difference_lens",
        "pca",
        "sae_difference",
        "crosscoder",
    },
    "Weights: which modules drifted, and how far.": {"weight_spectrum", "neuron_drift"},
}


def versions() -> dict[str, str]:
    return {"finetrace": importlib.metadata.version("finetrace"), "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }


def pair_facts(request: Request, pair: Pair, effects: Mapping[str, Effect]) -> dict[str, Any]:
    """The two models by name, kind and content."""
    facts: dict[str, Any] = {
        "base": short_name(request.base),
        "tuned": short_name(request.tuned) if request.tuned else short_name(request.base),
        "kind": pair.kind(TUNED),
        "dtype": str(pair.dtype).removeprefix("torch."),
        "device": pair.device.type,
        "layers": pair.n_layers,
        "d_model": pair.d_model,
        "vocabulary": pair.vocab_size,
        "base_sha256": pair.identity(BASE),
        "tuned_sha256": pair.identity(TUNED),
        "memory": pair.memory(),
    }
    for side in (BASE, TUNED):
        if pair.source(side).revision is not None:
            facts[f"{side}_revision"] = pair.source(side).revision
    pinned = {side: pair.source(side).revision for side in null_names(pair)}
    if any(pinned.values()):
        facts["null_revisions"] = {side: commit for side, commit in pinned.items() if commit is not None}
    if TUNED in effects:
        facts["effect"] = effects[TUNED].status
        facts["modules_changed"] = effects[TUNED].changed
    return facts


def effect_checks(effects: Mapping[str, Effect]) -> tuple[Check, ...]:
    """Does the fine-tune change anything? First of the pre-flight: silent no-ops are the commonest false "safe"."""
    checks = []
    for side, found in effects.items():
        name = "effect" if side == TUNED else f"effect of the null {side}"
        status = {"applied": "ok", "identical": "note"}.get(found.status, "warning")
        if side == TUNED or status != "ok":
            checks.append(Check(name, status, found.describe()))
    return tuple(checks)


def control_checks(request: Request, found: Mapping[str, Finding]) -> tuple[Check, ...]:
    """Of a negative control: whether nothing was found, which is what has to come out. Nothing on any other pair."""
    if not request.control:
        return ()
    name, built = "negative control", "This organism is a negative control: it was built to change nothing."
    chief = {
        f"{method}.{key}": one.numbers[key]
        for method, one in found.items()
        for key in dict.fromkeys((one.primary, *(measure.key for measure in one.measures)))
        if key in one.numbers
    }
    zero = [key for key, reading in chief.items() if reading.value == 0]
    more = [key for key, reading in chief.items() if reading.value and not reading.below_floor]
    if more:
        return (Check(name, "warning", f"{built} And yet something was found: {', '.join(more)}."),)
    exactly = f" Exactly zero: {', '.join(zero)}." if zero else ""
    return (Check(name, "ok", f"{built} Nothing was found.{exactly}"),)


def not_measured(found: Mapping[str, Finding]) -> tuple[str, ...]:
    """Measures of a method that ran and yet gave no figure, then what no method that ran answers; safety first."""
    missing = [
        f"{one.about.capitalize()}: `{one.key}` was asked for and not measured{reason(finding, one.key)}."
        for finding in found.values()
        for one in finding.measures
        if one.word == "not-measured"
    ]
    unasked = [text for text, methods in QUESTIONS.items() if not methods & set(found)]
    return tuple(sorted([*missing, *unasked], key=lambda text: not text.startswith("Safety")))


def protocol(
    request: Request, pair: Pair, corpus: Corpus, watch: Watch, *, seconds: float, command: str, trained: bool
) -> dict[str, Any]:
    """How the numbers came about, in full."""
    slices = {s.name: {"texts": s.rows, "tokens": s.tokens, "scored": s.scored} for s in corpus.summary()}
    template = (
        "plain fallback"
        if uses_fallback_template(pair.tokenizer, request.chat_template)
        else "the tokenizer's"
    )
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command or "Python",
        "seconds": round(seconds, 1),
        "data": data_name(request),
        "slices": slices,
        "corpus_sha256": corpus.identity,
        "truncated_texts": corpus.truncated,
        "too_short_texts": corpus.too_short,
        "max_tokens": request.max_tokens,
        "chat_template": "given" if request.chat_template else template,
        "system": request.system,
        "positions": "the prediction made at token p of token p + 1; padding and last tokens are excluded",
        "seed": request.seed,
        "batch_size": request.shape.batch_size,
        "shard_tokens": request.shape.shard_tokens,
        "nulls": list(null_names(pair)),
        "verdict_against": AT_DOSE if trained else AS_THEY_ARE,
        "quantization": request.quantization,
        "attention": request.attn_implementation or "the architecture's default",
        **({"thinking": "asked for"} if request.thinking else {}),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processor": processor(pair),
        "notes": list(watch.notes),
    }


def data_name(request: Request) -> str:
    if request.data is None:
        return "the tiny world's slices" if is_bundled(request.base) else "finetrace's neutral samples"
    if isinstance(request.data, DataSource):
        return request.data.name
    return (
        str(request.data)
        if isinstance(request.data, str) or hasattr(request.data, "name")
        else "rows given in Python"
    )


def processor(pair: Pair) -> str:
    if pair.device.type == "cuda":
        return torch.cuda.get_device_name(pair.device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def manifest(request: Request, pair: Pair, item: Item, *, seconds: float, command: str) -> dict[str, Any]:
    """What a result's folder says of itself. Nothing here moves a number, but for the address, which all of it does."""
    return {
        "method": item.chosen.card.name,
        "version": item.chosen.card.version,
        "contrast": item.contrast.label,
        "scale": item.contrast.scale,
        "base": {"name": short_name(request.base), "sha256": pair.identity(BASE)},
        "other": {"side": item.contrast.side, "sha256": pair.identity(item.contrast.side)},
        "revisions": {side: pair.source(side).revision for side in (BASE, item.contrast.side)},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "command": command or "Python",
        "versions": versions(),
        "processor": processor(pair),
        "data": data_name(request),
        "trained_here": _trained_here(request, item),
        "protocol": dict(item.protocol),
    }


def _trained_here(request: Request, item: Item) -> bool:
    """Whether the other side is a null that `--null train` made: its size is arbitrary, so it judges nothing as it is."""
    return item.contrast.label.startswith("null:") and any(
        Path(source).is_relative_to(request.out / "nulls") and Path(source).name == item.contrast.side
        for source in request.nulls
    )


def limits(request: Request, pair: Pair) -> tuple[str, ...]:
    found = [
        "The verdicts are about this checkpoint, these texts and this protocol.",
        "Intervals cover the choice of texts. They exclude what another training run of the same recipe would vary.",
        "The nulls stand for a benign fine-tune only if they are like one: same base, similar size and training.",
    ]
    count = len(null_names(pair))
    if count:
        from finetrace.stats import false_positive_bound

        bound = false_positive_bound(0, count)
        found.append(
            f"With {count} nulls a false-positive rate up to {bound:.0%} cannot be ruled out by them alone (0 of {count})."
        )
    if str(pair.dtype) != "torch.float32":
        found.append(
            f"The models ran in {str(pair.dtype).removeprefix('torch.')}. The noise floor shows what another batch shape "
            "moves; the rounding that both runs share is larger, and may be above small changes: compare in float32."
        )
    if is_bundled(request.base):
        found.append(
            "Measured on a 3M-parameter model of an invented world: failing here is evidence against a method, passing is "
            "not evidence for it."
        )
    return tuple(found)


def next_steps(request: Request, found: Mapping[str, Finding], pair: Pair) -> tuple[str, ...]:
    """What would settle what is undecided, with the command."""
    if (
        request.tuned is None
        or len(null_names(pair)) >= 3
        or all(f.change != "undecided" for f in found.values() if f.primary is not None)
    ):
        return ()
    base, tuned = shlex.quote(request.base), shlex.quote(request.tuned)
    return (
        "The change is undecided because fewer than three benign nulls were read. Give at least three harmless fine-tunes "
        f"of the same base: finetrace audit {base} {tuned} --null NULL_1 --null NULL_2 --null NULL_3",
        f"Or have four made here, small LoRA adapters of {STEPS} steps on neutral texts: finetrace audit {base} {tuned} "
        "--null train (with --dry-run it says what that costs).",
        "Each null costs one or two more forward passes over the same texts; what is on the shelf is not made again.",
    )


def redacted(request: Request, corpus: Corpus) -> tuple[str, ...]:
    """Slices whose texts are not shown: the user's own restricted prompts, unless --reveal."""
    return () if request.reveal else private(request, corpus)


def private(request: Request, corpus: Corpus) -> tuple[str, ...]:
    """Slices of the user's own restricted prompts, which go to no judge, whatever a report shows."""
    if is_bundled(request.base) and request.data is None:
        return ()
    return tuple(name for name in corpus.slices if name.startswith(PRIVATE))
