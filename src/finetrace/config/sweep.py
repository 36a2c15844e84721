"""Words with sweeps, as the words of every run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from finetrace.config.fill import near
from finetrace.config.grammar import MOST_RUNS, Glob, Word, parse
from finetrace.config.groups import GROUPS, names, read_entry
from finetrace.config.root import read_root
from finetrace.config.tree import AUTO, OrganismEntry
from finetrace.core.errors import BadInput, ConfigErrors

__all__ = ["expand"]

_VARIANT = "organism_variant"


def expand(words: Sequence[str], config_dir: Path | None = None) -> list[tuple[str, ...]]:
    """The words of every run, the last word turning fastest.

    What `model=glob(..)` and `organism_variant=glob(..)` match depends on the organism, so they turn fastest of all, and an
    organism that has none of them is left out. Words that cannot be read stay as they are, to be told when they are
    composed. Raises ConfigErrors where a sweep has nothing in it or too much.
    """
    parsed = [_parsed(text) for text in words]
    ranges = [_values(text, word, config_dir) for text, word in zip(words, parsed, strict=True)]
    _check(math.prod(map(len, ranges)))
    found = list(product(*ranges))
    for key in ("model", _VARIANT):
        for word in parsed:
            if word is None or word.key != key or not isinstance(word.sweep, Glob):
                continue
            found = [new for one in found for new in _of_organism(one, word, word.sweep, config_dir)]
            _check(len(found))
            if not found:
                raise BadInput(f"'{word.text}' matches nothing.")
    return found


def _check(number: int) -> None:
    if number > MOST_RUNS:
        raise BadInput(f"This is a sweep of {number:,} runs; one may have {MOST_RUNS:,}.")


def _parsed(text: str) -> Word | None:
    try:
        return parse(text)
    except BadInput:
        return None


def _values(text: str, word: Word | None, config_dir: Path | None) -> tuple[str, ...]:
    """The words that a word stands for, as far as they can be told by themselves."""
    if (
        word is None
        or word.sweep is None
        or (isinstance(word.sweep, Glob) and word.key in ("model", _VARIANT))
    ):
        return (text,)
    if not isinstance(word.sweep, Glob):
        return word.sweep
    if word.key not in GROUPS:
        raise BadInput(f"'{text}': names are matched of a group only ({', '.join(GROUPS)}), and of variants.")
    known = names(word.key, config_dir)
    matched = word.sweep.matches(known)
    if not matched:
        raise BadInput(f"'{text}' matches nothing.{near(word.sweep.include[0], known)}")
    return tuple(f"{word.key}={name}" for name in matched)


def _of_organism(
    words: tuple[str, ...], word: Word, sweep: Glob, config_dir: Path | None
) -> list[tuple[str, ...]]:
    """The words with those that match in place of one that depends on the organism."""
    try:
        root = read_root(config_dir)
        organism: OrganismEntry = read_entry(
            "organism", _last(words, "organism", root.chosen["organism"]), config_dir
        )
    except (BadInput, ConfigErrors):
        return [tuple(f"{word.key}={AUTO}" if one == word.text else one for one in words)]
    trained = organism.finetuned_models
    if word.key == "model":
        known = tuple(trained)
    else:
        model = _last(words, "model", root.chosen["model"])
        known = tuple(trained.get(next(iter(trained), "") if model == AUTO else model, ()))
    matched = sweep.matches(known)
    return [tuple(f"{word.key}={name}" if one == word.text else one for one in words) for name in matched]


def _last(words: Sequence[str], key: str, default: str) -> str:
    """What is chosen of a group by the last word that does."""
    found = [word.written for word in map(_parsed, words) if word is not None and word.key == key]
    return found[-1] if found else default
