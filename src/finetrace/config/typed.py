"""Words that set a value: by the section that they belong to, and laid over what a file says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetrace.config.checks import CHECKS
from finetrace.config.fill import Told, fill, hint_at, near
from finetrace.config.grammar import Word
from finetrace.config.groups import GROUPS, METHOD
from finetrace.config.peer import MOVED, unused

__all__ = ["Typed", "Words", "filled", "merged", "misplaced", "sort_words", "typed_value"]


@dataclass(frozen=True)
class Typed:
    """A word that sets a value. path: below its section."""

    path: tuple[str, ...]
    word: Word


@dataclass(frozen=True)
class Words:
    """chosen: group -> what was chosen. typed: section of the tree -> what is set in it, later ones winning. options: what
    is set in the methods' own options."""

    chosen: Mapping[str, Any]
    typed: Mapping[str, Sequence[Typed]]
    options: Sequence[Typed]

    def of(self, section: str) -> Sequence[Typed]:
        """What is set in a section."""
        return self.typed.get(section, ())


def sort_words(words: Iterable[Word], told: Told) -> Words:
    """Words by what they do; those that belong nowhere are told."""
    chosen: dict[str, Any] = {}
    typed: dict[str, list[Typed]] = {}
    options: list[Typed] = []
    for word in words:
        if word.key in GROUPS:
            chosen[word.key] = _choice(word)
        elif (wrong := misplaced(word)) is not None:
            told.problems.append(wrong)
        else:
            head, *rest = MOVED.get(word.key, word.key).split(".")
            if word.key == "layers":
                options.append(Typed(("layers",), word))
            if head == "diffing" and rest[:1] in (["method"], ["methods"]):
                options.append(Typed(tuple(rest[1:]), word))
            else:
                typed.setdefault(head, []).append(Typed(tuple(rest), word))
    return Words(chosen, typed, options)


def _choice(word: Word) -> Any:
    """What was chosen of a group: its name as it was typed, also where that looks like a number."""
    number = isinstance(word.value, int | float) and not isinstance(word.value, bool)
    return word.written if number and word.key != METHOD else word.value


def misplaced(word: Word) -> str | None:
    """What is wrong with a key that belongs elsewhere."""
    if word.key == "recipe" or word.key.startswith("recipe."):
        return f"'{word.text}': recipes are for training, as in `finetrace train {word.text}`."
    if word.key.startswith(("hydra.", "hydra/")):
        return (
            f"'{word.text}' speaks to Hydra's own runner, which takes no part here: "
            "sweeps are --multirun, clusters are infrastructure=ray or slurm, folders are out=."
        )
    if "/" in word.key:
        return f"There is no group '{word.key}'.{near(word.key, GROUPS)}"
    if word.key in ("method", "methods", "diffing.method", "diffing.methods"):
        return f"'{word.text}': methods are chosen by {METHOD}=NAME or {METHOD}=[kl,diff_mining]."
    return None


def filled(
    kind: type,
    values: Mapping[str, Any],
    typed: Sequence[Typed],
    name: str,
    told: Told,
    said: Sequence[str] = (),
) -> Any:
    """A section of the tree from a file's values with what was typed over them. said: problems that are told already."""
    for one in typed:
        if one.path:
            values = _with(values, one.path, typed_value(one.word, hint_at(kind, one.path)))
        else:
            told.problems.append(
                f"'{one.word.text}': {name} has settings of its own; name one, as in {name}.KEY=VALUE."
            )
    found = Told()
    made = fill(kind, values, name, found, checks=CHECKS, unused=unused)
    told.problems.extend(problem for problem in found.problems if problem not in said)
    told.notes.extend(found.notes)
    return made


def typed_value(word: Word, hint: Any) -> Any:
    """What was typed; as it stands there, where a text is wanted and it looks like a number."""
    if hint is str and isinstance(word.value, int | float) and not isinstance(word.value, bool):
        return word.written
    return word.value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of `above` winning."""
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        made[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return made


def _with(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return merged(values, value)
