"""The methods that were chosen, and their options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finetrace.config.fill import Told, hint_at, hints, near
from finetrace.config.grammar import Word
from finetrace.config.groups import METHOD, entry, has
from finetrace.config.options import check_options
from finetrace.config.peer import DIFFERS, METHOD_MOVED, MOVED, NOT_BUILT, translated, unused_option
from finetrace.config.reading import flat
from finetrace.config.typed import Typed, typed_value
from finetrace.core.card import Broken, Method, discover
from finetrace.core.errors import BadInput

__all__ = ["Asked", "all_options", "ask"]

_OPTION = "diffing.method."


@dataclasses.dataclass(frozen=True)
class Asked:
    """methods: name -> the options that are not at their defaults. below: what their files set outside the methods
    (`diffing.batch_size`), for words to win over."""

    methods: Mapping[str, Mapping[str, Any]]
    below: tuple[Typed, ...] = ()

    def of(self, section: str) -> list[Typed]:
        """What a method's file sets in a section."""
        prefix = f"{section}."
        return [one for one in self.below if one.word.key.startswith(prefix)]


def ask(chosen: Any, options: Sequence[Typed], config_dir: Path | None, told: Told) -> Asked:
    """The methods by name, with what their files and words set; problems and notes go to `told`."""
    cards, broken = _cards()
    found: dict[str, dict[str, Any]] = {}
    below: dict[str, Any] = {}
    names = list(chosen) if isinstance(chosen, list | tuple) else [chosen]
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        file = _file(name, cards, broken, config_dir, told)
        if file is None:
            continue
        if file[0] in found:
            told.problems.append(f"The method '{file[0]}' is chosen twice, by two files: leave one out.")
        found.setdefault(file[0], _renamed(file[0], file[1], f"{name}.yaml: ", below, told))
    if not names or not all(isinstance(name, str) for name in names):
        told.problems.append(f"{METHOD} is {chosen!r}; it takes a name, or several as in [kl,diff_mining].")
    for one in options:
        _set(one, found, cards, told)
    made: dict[str, Mapping[str, Any]] = {}
    for name, values in found.items():
        config, problems = check_options(cards[name], values) if values else (None, [])
        told.problems.extend(problems)
        made[name] = MappingProxyType({} if config is None else _changed(config))
    outside = (
        Typed(tuple(key.split(".")[1:]), Word(key, key, value, str(value))) for key, value in below.items()
    )
    return Asked(MappingProxyType(made), tuple(outside))


def all_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options with those that are at their defaults."""
    cards, _ = _cards()
    return _options(cards[name].config(**options))


def _file(
    name: str, cards: Mapping[str, Method], broken: Sequence[Broken], config_dir: Path | None, told: Told
) -> tuple[str, Mapping[str, Any]] | None:
    """A method by the name of its file: its own name, and its options there."""
    if not has(METHOD, name, config_dir):
        if name in cards:
            return name, {}  # installed from elsewhere: it has no file
        told.problems.append(_no_method(name, cards, broken))
        return None
    try:
        values = dict(entry(METHOD, name, config_dir).values)
    except BadInput as error:
        told.problems.append(str(error))
        return None
    named = str(values.pop("name"))
    if named not in cards:
        told.problems.append(f"{name}.yaml: {_no_method(named, cards, broken)}")
        return None
    return named, values


def _no_method(name: str, cards: Mapping[str, Method], broken: Sequence[Broken]) -> str:
    for card in broken:
        if card.name == name:
            return f"The method '{name}' is broken: {card.error}"
    known = ", ".join(cards)
    if name in NOT_BUILT:
        return f"The method '{name}' is not built yet. There are: {known}."
    hint = near(name, cards)
    return f"There is no method '{name}'.{hint}{f' Known: {known}.' if 'mean' in hint else ''}"


def _renamed(
    method: str, values: Mapping[str, Any], where: str, below: dict[str, Any], told: Told
) -> dict[str, Any]:
    """A file's options by our names; those that stand elsewhere here go to `below`, those without use to the notes."""
    made: dict[str, Any] = {}
    known = hints(_cards()[0][method].config)
    # There, no layers are those of all activations that are stored; here a method has layers of its own.
    values = {key: value for key, value in values.items() if key != "layers" or value is not None}
    for option, value in flat({key: values[key] for key in values if key not in known}).items():
        ours = METHOD_MOVED.get(method, {}).get(option)
        unused = unused_option(method, option, value, typed=False)
        if ours is not None and value is not None:
            made[ours] = translated(ours, value)
        elif (moved := MOVED.get(_OPTION + option)) is not None:
            below[moved] = value
        elif option == "layers" and "layer" in known and isinstance(value, list):
            if len(value) == 1:
                made["layer"] = value[0]
            else:
                told.notes.append(
                    f"{where}layers has no use here: {method} reads at one layer; sweep diffing.method.layer."
                )
        elif unused is not None:
            told.unused(f"{where}{unused[0]}", value, unused[1])
        elif ours is None:
            made[option] = value
    ours_too, said = DIFFERS.get(method, (frozenset(), ""))
    if made and said and not ours_too & set(values):
        told.notes.append(f"{where}{said}.")
    return made | {key: value for key, value in values.items() if key in known}


def _set(one: Typed, found: dict[str, dict[str, Any]], cards: Mapping[str, Method], told: Told) -> None:
    """`diffing.method.OPTION`, for every chosen method that has it, or `diffing.method.METHOD.OPTION`."""
    path, targets, word = one.path, list(found), one.word
    if len(path) > 1 and path[0] in cards:
        if path[0] not in found:
            told.problems.append(
                f"'{word.text}': the method '{path[0]}' is not chosen, but {', '.join(found)}."
            )
            return
        path, targets = path[1:], [path[0]]
    option, had = ".".join(path), False
    for name in targets:
        config = cards[name].config
        ours = METHOD_MOVED.get(name, {}).get(option, option)
        if ours in hints(config):
            value = typed_value(word, hint_at(config, (ours,)))
            found[name][ours], had = translated(ours, value) if ours != option else value, True
        elif option == "layers" and "layer" in hints(config):
            had = True
            layers = word.value if isinstance(word.value, list) else [word.value]
            if len(layers) == 1:
                found[name]["layer"] = layers[0]
            else:
                told.problems.append(
                    f"'{word.text}': the method '{name}' reads at one layer; "
                    f"sweep it, as in --multirun {_OPTION}layer=0.25,0.5."
                )
    if had or word.key == "layers" or not targets:
        return
    known = [unused_option(name, option, word.value, typed=True) for name in targets]
    if any(known):
        for unused in dict.fromkeys(found for _, found in filter(None, known)):
            told.unused(_OPTION + option, word.value, unused)
        return
    everyone = {known for name in targets for known in hints(cards[name].config)}
    who = f"The method '{targets[0]}' has no" if len(targets) == 1 else f"None of {', '.join(targets)} has an"
    told.problems.append(f"{who} option '{option}'.{near(option, everyone)}")


def _changed(config: Any) -> dict[str, Any]:
    """The options that are not at their default."""
    usual = _options(type(config)())
    return {name: value for name, value in _options(config).items() if value != usual[name]}


def _options(config: Any) -> dict[str, Any]:
    return {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}


def _cards() -> tuple[dict[str, Method], tuple[Broken, ...]]:
    return _cards_of(tuple(sys.path))


@lru_cache(maxsize=2)
def _cards_of(paths: tuple[str, ...]) -> tuple[dict[str, Method], tuple[Broken, ...]]:
    # Looking for installed methods costs tens of milliseconds, more than all the rest of a composition.
    return discover()
