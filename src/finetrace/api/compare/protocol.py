"""Which runs may stand in one matrix: those whose figures differ by the fine-tune and by nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from finetrace.api.compare.chosen import Placed

# Plain words for what a protocol names. What is not here is said by its dotted name.
WORDS = {
    "base": "the base's weights",
    "tokenizer": "the tokenizer",
    "vocabulary": "the tokens that all sides share",
    "template": "the chat template",
    "system": "the system prompt",
    "corpus": "the texts, as tokens",
    "slices": "the slices",
    "context": "the context length",
    "seed": "the seed",
    "dtype": "the dtype",
    "device": "the kind of device",
    "quantization": "the quantisation",
    "attention": "the attention implementation",
    "version": "the method's version",
    "states": "the type that hidden states are stored in",
    "shape.batch_size": "the batch size",
    "shape.shard_tokens": "the size of a shard",
}
# What goes with the base: another one has its own tokenizer, and so its own tokens of the same texts.
OF_BASE = ("base", "tokenizer", "vocabulary", "corpus", "template")
_LONG = 24


def differing(runs: Sequence[Placed], across_bases: bool) -> list[str]:
    """What differs between runs that are to stand in one matrix, a sentence each; none where they may. across_bases: whether
    the base is what is compared, so that what goes with it may differ if the texts have the same name and slices."""
    silent = [one for one in runs if one.protocol is None]
    found = []
    if silent and len(runs) > 1:
        found.append(
            f"{_count(len(silent))} made before a manifest said with which settings, so nothing shows that they are the same "
            f"(e.g. {silent[0].folder}): make them again."
        )
    told = [(one, _compared(one, across_bases)) for one in runs if one.protocol is not None]
    names = sorted({name for _, settings in told for name in settings})
    for name in names:
        values = [(one, _text(settings.get(name))) for one, settings in told]
        counts = Counter(value for _, value in values)
        if len(counts) > 1:
            parts = [f"{value} ({_runs(count)})" for value, count in counts.most_common()]
            rarest = next(one for one, value in values if value == counts.most_common()[-1][0])
            found.append(f"{WORDS.get(name, name)} differs: {', '.join(parts)}; e.g. {rarest.folder}.")
    return found


def _compared(run: Placed, across_bases: bool) -> dict[str, Any]:
    settings = dict(run.protocol or {})
    if across_bases:
        settings = {name: value for name, value in settings.items() if name not in OF_BASE}
        settings["the texts' name"] = run.entry.manifest.get("data")
    return settings


def shared(runs: Sequence[Placed]) -> dict[str, Any]:
    """What all the runs' protocols say alike."""
    told = [one.protocol for one in runs]
    if not told or any(one is None for one in told):
        return {}
    first, *rest = (one or {} for one in told)
    return {
        name: value for name, value in first.items() if all(one.get(name, _NOTHING) == value for one in rest)
    }


_NOTHING = object()


def same_texts(one: Placed, other: Placed) -> bool:
    """Whether two runs' replicates are of the same texts or prompts, drawn alike."""
    if one.protocol is None or other.protocol is None:
        return False
    drawn = ("corpus", "seed", "slices", "asked.prompts")
    return all(_of(one.protocol, name) == _of(other.protocol, name) for name in drawn)


def _of(protocol: Mapping[str, Any], name: str) -> Any:
    return protocol.get(name)


def _text(value: Any) -> str:
    """A setting in a few characters; hashes are cut."""
    text = "none" if value is None else str(value).removeprefix("torch.")
    return text if len(text) <= _LONG else f"{text[:8]}…"


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _count(count: int) -> str:
    return f"{count} run was" if count == 1 else f"{count} runs were"
