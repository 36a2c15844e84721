"""The words of a run and the groups of YAML files, as one RunConfig; all that is wrong is told before anything loads."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from finetrace.config.checks import CHECKS
from finetrace.config.fill import UNREADABLE, Told, fill, hint_at, hints, near, read
from finetrace.config.grammar import Word, parse
from finetrace.config.groups import GROUPS, METHOD, Entry, entry, names, read_file
from finetrace.config.options import check_options
from finetrace.config.peer import METHOD_MOVED, MOVED, NOT_BUILT, ignored, method_ignored
from finetrace.config.recipes import SHIPPED
from finetrace.config.tree import AUTO, DataSet, ModelEntry, OrganismEntry, Preprocessing, RunConfig, Variant
from finetrace.core.card import Broken, Method, discover
from finetrace.core.errors import BadInput, ConfigErrors

__all__ = ["as_yaml", "compose_run", "compose_runs", "gather_run"]

_ROOT = "config.yaml"
_SECTIONS = ("pipeline", "preprocessing", "diffing")
_PARTS = ("organism", "model", "data", "infrastructure")
_VARIANT = "organism_variant"
_OPTION = "diffing.method."


def compose_run(words: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """The run that `words` ask for (`organism=cake_bake`, `diffing/method=[kl,diff_mining]`, `data.context_len=256`).

    Later words win over earlier ones, words over files, files in `config_dir` over shipped ones. Raises ConfigErrors with
    every problem that can be seen without loading anything.
    """
    config, problems = gather_run(words, config_dir)
    if problems or config is None:
        raise ConfigErrors(problems)
    return config


def gather_run(words: Sequence[str], config_dir: Path | None = None) -> tuple[RunConfig | None, list[str]]:
    """As `compose_run`, with the problems beside what could be made; None where organism or model is not known."""
    gathering = _Gathering(config_dir)
    parsed = [one for one in (gathering.attempt(parse, word) for word in words) if one is not None]
    for word in parsed:
        if word.sweep is not None:
            gathering.problems.append(
                f"'{word.text}' is a sweep: add --multirun, or quote it where it is one text ({word.key}='\"a, b\"')."
            )
    config = gathering.compose([word for word in parsed if word.sweep is None])
    return config, list(dict.fromkeys(gathering.problems))


@dataclass
class _Gathering:
    """One composition while it goes on."""

    config_dir: Path | None
    told: Told = field(default_factory=Told)

    @property
    def problems(self) -> list[str]:
        return self.told.problems

    def attempt(self, work: Any, *arguments: Any) -> Any:
        """What `work` gives, or None with what it says among the problems."""
        try:
            return work(*arguments)
        except ConfigErrors as error:
            self.problems.extend(error.problems)
        except BadInput as error:
            self.problems.append(str(error))
        return None

    def compose(self, words: Iterable[Word]) -> RunConfig | None:
        if self.config_dir is not None and not self.config_dir.expanduser().is_dir():
            self.problems.append(f"--config-dir {self.config_dir} is not a folder.")
        root = self.attempt(_root, self.config_dir)
        if root is None:
            return None
        self.problems.extend(root.problems)
        self.told.notes.extend(root.notes)
        chosen, typed = self._sorted(words, dict(root.chosen))
        cards, broken = _cards()
        methods = self._methods(chosen[METHOD], typed, cards, broken)
        parts = {
            kind: self._part(kind, chosen[kind], typed.get(kind, [])) for kind in ("data", "infrastructure")
        }
        organism = self._part("organism", chosen["organism"], typed.get("organism", []))
        model, variant = None, None
        simple = self._simple(root, typed)
        if organism is not None:
            model, variant = self._trained(
                organism, chosen["model"], typed.get("model", []), simple[_VARIANT]
            )
        elif chosen["model"] != AUTO:
            self._part("model", chosen["model"], typed.get("model", []))
        overrides = organism.preprocessing_overrides if organism is not None else {}
        sections = {name: self._section(name, root, typed.get(name, []), overrides) for name in _SECTIONS}
        if organism is None or model is None or variant is None or None in parts.values():
            return None
        return RunConfig(
            organism=organism,
            model=model,
            variant=variant,
            data=_cut(parts["data"], sections["preprocessing"]),
            infrastructure=parts["infrastructure"],
            pipeline=sections["pipeline"],
            preprocessing=sections["preprocessing"],
            diffing=dataclasses.replace(sections["diffing"], methods=MappingProxyType(methods)),
            notes=tuple(dict.fromkeys(self.told.notes)),
            **simple,
        )

    def _sorted(
        self, words: Iterable[Word], chosen: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, list[tuple[tuple[str, ...], Word]]]]:
        """What is chosen of each group, and the other words by the first part of their (renamed) key."""
        typed: dict[str, list[tuple[tuple[str, ...], Word]]] = {}
        for word in words:
            if word.key in GROUPS:
                chosen[word.key] = self._choice(word)
                continue
            if (wrong := _misplaced(word)) is not None:
                self.problems.append(wrong)
                continue
            head, *rest = MOVED.get(word.key, word.key).split(".")
            if word.key == "layers":
                typed.setdefault("diffing", []).append((("method", "layers"), word))
            typed.setdefault(head, []).append((tuple(rest), word))
        return chosen, typed

    def _choice(self, word: Word) -> Any:
        if word.key == METHOD:
            return word.value
        if isinstance(word.value, str | int | float) and not isinstance(word.value, bool):
            return word.written if not isinstance(word.value, str) else word.value
        self.problems.append(f"'{word.text}': one {word.key} is chosen by its name, as in {word.key}=NAME.")
        return None

    def _part(self, kind: str, name: Any, typed: list[tuple[tuple[str, ...], Word]]) -> Any:
        """The chosen entry of a group with what was typed over it."""
        if name is None:
            return None
        found: Entry | None = self.attempt(entry, kind, name, self.config_dir)
        if found is None:
            return None
        file = f"{found.path.name}: "
        self.problems.extend(file + problem for problem in found.problems)
        self.told.notes.extend(file + note for note in found.notes)
        if not typed:
            return found.value
        return self._filled(type(found.value), found.values, typed, kind, said=found.problems)

    def _section(
        self, name: str, root: _Root, typed: list[tuple[tuple[str, ...], Word]], overrides: Mapping[str, Any]
    ) -> Any:
        typed = [
            (path, word)
            for path, word in typed
            if name != "diffing" or path[:1] not in (("method",), ("methods",))
        ]
        above = overrides if name == "preprocessing" else {}
        if not typed and not above:
            return root.sections[name]
        kind = hints(RunConfig)[name]
        return self._filled(kind, {**root.values.get(name, {}), **above}, typed, name)

    def _filled(
        self,
        kind: type,
        values: Mapping[str, Any],
        typed: list[tuple[tuple[str, ...], Word]],
        name: str,
        said: Sequence[str] = (),
    ) -> Any:
        for path, word in typed:
            if not path:
                self.problems.append(
                    f"'{word.text}': {name} has settings of its own; name one, as in {name}.KEY=VALUE."
                )
            else:
                values = _with(values, path, _value(word, hint_at(kind, path)))
        told = Told()
        made = fill(kind, values, name, told, checks=CHECKS, ignored=ignored)
        self.problems.extend(problem for problem in told.problems if problem not in said)
        self.told.notes.extend(told.notes)
        return made

    def _simple(self, root: _Root, typed: Mapping[str, list[tuple[tuple[str, ...], Word]]]) -> dict[str, Any]:
        """The settings of the root that have no settings of their own."""
        made = dict(root.simple)
        wanted = hints(RunConfig)
        for head, words in typed.items():
            if head in _PARTS or head in _SECTIONS:
                continue
            for path, word in words:
                name = ".".join([head, *path])
                if path or head not in made:
                    if (why := ignored(name)) is not None:
                        self.told.notes.append(f"{name} is {why}")
                    else:
                        self.problems.append(f"There is no setting '{name}'.{_meant(name)}")
                    continue
                found = read(wanted[head], _value(word, wanted[head]), head, self.told)
                check = CHECKS.get((RunConfig, head))
                wrong = check(found) if check and found is not None and found is not UNREADABLE else None
                if wrong is not None:
                    self.problems.append(f"{head} is {found!r}; {wrong}")
                elif found is not UNREADABLE:
                    made[head] = found
        return made

    def _trained(
        self, organism: OrganismEntry, name: Any, typed: list[tuple[tuple[str, ...], Word]], variant: str
    ) -> tuple[ModelEntry | None, Variant | None]:
        """The base and the fine-tune on it."""
        trained = organism.finetuned_models
        if name == AUTO:
            if not trained:
                self.problems.append(
                    f"The organism '{organism.name}' names no model: choose one, as in model=qwen3_1_7B."
                )
                return None, None
            name = next(iter(trained))
        model = self._part("model", name, typed)
        if model is None:
            return None, None
        if organism.control and not trained:
            return model, Variant()
        variants = trained.get(model.name, trained.get(name))
        if variants is None:
            self.problems.append(
                f"The organism '{organism.name}' was not trained on '{name}'.{near(name, trained)}{_also(trained)}"
            )
            return model, None
        if variant not in variants:
            self.problems.append(
                f"The organism '{organism.name}' has no variant '{variant}' on '{name}'.{near(variant, variants)}{_also(variants)}"
            )
            return model, None
        return model, variants[variant]

    def _methods(
        self,
        chosen: Any,
        typed: Mapping[str, list[tuple[tuple[str, ...], Word]]],
        cards: Mapping[str, Method],
        broken: Sequence[Broken],
    ) -> dict[str, Mapping[str, Any]]:
        """Method -> its options that differ from its defaults."""
        wanted = list(dict.fromkeys(chosen if isinstance(chosen, list) else [chosen]))
        found: dict[str, dict[str, Any]] = {}
        for name in wanted:
            options = self._method(name, cards, broken)
            if options is None:
                continue
            if options[0] in found:
                self.problems.append(
                    f"The method '{options[0]}' is chosen twice, by two files: leave one out."
                )
            found.setdefault(*options)
        if not wanted:
            self.problems.append(f"No method is chosen: {METHOD}=NAME is one of {', '.join(cards)}.")
        for path, word in typed.get("diffing", []):
            if path[:1] in (("method",), ("methods",)):
                self._option(path[1:], word, found, cards)
        made: dict[str, Mapping[str, Any]] = {}
        for name, options in found.items():
            config, problems = check_options(cards[name], options)
            self.problems.extend(problems)
            made[name] = MappingProxyType({} if config is None else _changed(config))
        return made

    def _method(
        self, name: Any, cards: Mapping[str, Method], broken: Sequence[Broken]
    ) -> tuple[str, dict[str, Any]] | None:
        """A method that was asked for by name, and its options as a file has them."""
        if not isinstance(name, str):
            self.problems.append(f"{METHOD} is {name!r}; it takes a name, or several as in [kl,diff_mining].")
            return None
        if name in NOT_BUILT and name not in names(METHOD, self.config_dir):
            self.problems.append(f"The method '{name}' is not built yet. There are: {', '.join(cards)}.")
            return None
        for card in broken:
            if card.name == name:
                self.problems.append(f"The method '{name}' is broken: {card.error}")
                return None
        if name in cards and name not in names(METHOD, self.config_dir):
            return name, {}  # installed from elsewhere: it has no file
        file: Entry | None = self.attempt(entry, METHOD, name, self.config_dir)
        if file is None:
            return None
        options = dict(file.values)
        named = options.pop("name")
        if named not in cards:
            self.problems.append(f"{file.path.name}: There is no method '{named}'.{near(str(named), cards)}")
            return None
        return named, self._renamed(named, options, f"{file.path.name}: ")

    def _renamed(self, method: str, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A file's options by our names; what has no use here goes to the notes."""
        made: dict[str, Any] = {}
        for key, value in options.items():
            if (moved := METHOD_MOVED.get(method, {}).get(key)) is not None:
                made[moved] = value
            elif (why := method_ignored(key)) is not None:
                self.told.notes.append(f"{where}{key} is {why}")
            else:
                made[key] = value
        return made

    def _option(
        self, path: tuple[str, ...], word: Word, found: dict[str, dict[str, Any]], cards: Mapping[str, Method]
    ) -> None:
        """`diffing.method.OPTION`, for every method that has it, or `diffing.method.METHOD.OPTION`."""
        if len(path) > 1 and path[0] in cards:
            if path[0] not in found:
                self.problems.append(
                    f"'{word.text}': the method '{path[0]}' is not chosen, but {', '.join(found)}."
                )
                return
            targets, path = [path[0]], path[1:]
        else:
            targets = list(found)
        option, had = ".".join(path), False
        for name in targets:
            config = cards[name].config
            known = hints(config)
            ours = METHOD_MOVED.get(name, {}).get(option, option)
            if ours in known:
                found[name][ours], had = _value(word, hint_at(config, (ours,))), True
            elif option == "layers" and "layer" in known:
                had = True
                if (layer := self._one_layer(name, word)) is not None:
                    found[name]["layer"] = layer
        if had or word.key == "layers" or not targets:
            return
        if (why := method_ignored(option)) is not None:
            self.told.notes.append(f"{_OPTION}{option} is {why}")
            return
        everyone = {known for name in targets for known in hints(cards[name].config)}
        self.problems.append(f"{_one_of(targets)} has no option '{option}'.{near(option, everyone)}")

    def _one_layer(self, name: str, word: Word) -> Any:
        layers = word.value if isinstance(word.value, list) else [word.value]
        if len(layers) == 1:
            return layers[0]
        self.problems.append(
            f"'{word.text}': the method '{name}' reads at one layer; sweep it, as in --multirun {_OPTION}layer=0.25,0.5."
        )
        return None


@dataclass(frozen=True)
class _Root:
    """What config.yaml says. chosen: group -> name. values: its sections as written."""

    chosen: Mapping[str, Any]
    values: Mapping[str, Any]
    sections: Mapping[str, Any]
    simple: Mapping[str, Any]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def _root(config_dir: Path | None) -> _Root:
    own = None if config_dir is None else config_dir.expanduser() / _ROOT
    shipped = read_file(SHIPPED / _ROOT)
    return _made_root(_Same(shipped), _Same(read_file(own) if own is not None and own.is_file() else {}))


class _Same:
    """A mapping by its identity: files that are read once are the same object for as long as they stay as they are."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def __hash__(self) -> int:
        return id(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and (self.values is other.values or self.values == other.values == {})


@lru_cache(maxsize=16)
def _made_root(shipped: _Same, own: _Same) -> _Root:
    told = Told()
    chosen: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for one in (shipped.values, own.values):
        for default in one.get("defaults", []):
            if isinstance(default, dict):
                chosen |= {key: value for key, value in default.items() if key in GROUPS}
        values = _merged(values, {key: value for key, value in one.items() if key != "defaults"})
    wanted = hints(RunConfig)
    sections: dict[str, Any] = {}
    simple = {one.name: one.default for one in dataclasses.fields(RunConfig) if one.name in _SIMPLE}
    for key, value in values.items():
        if key in _SECTIONS:
            sections[key] = fill(wanted[key], value, key, told, checks=CHECKS, ignored=ignored)
        elif key in simple:
            found = read(wanted[key], value, key, told)
            simple |= {} if found is UNREADABLE else {key: found}
        elif (why := ignored(key)) is not None:
            told.notes.append(f"{_ROOT}: {key} is {why}")
        else:
            told.problems.append(f"There is no setting '{key}'.{_meant(key)}")
    return _Root(chosen, values, sections, simple, tuple(told.problems), tuple(told.notes))


_SIMPLE = tuple(
    one.name
    for one in dataclasses.fields(RunConfig)
    if one.name not in (*_PARTS, *_SECTIONS, "variant", "notes")
)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(below)
    for key, value in above.items():
        old = made.get(key)
        made[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return made


def _with(values: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """`values` with one of them replaced, whatever is above it made anew."""
    head, *rest = path
    inner = values.get(head)
    if rest:
        value = _with(inner if isinstance(inner, Mapping) else {}, tuple(rest), value)
    elif isinstance(value, dict) and isinstance(inner, dict):
        value = _merged(inner, value)
    return {**values, head: value}


def _value(word: Word, hint: Any) -> Any:
    """What was typed; as it stands there, where a text is wanted and it looks like a number."""
    if hint is str and isinstance(word.value, int | float) and not isinstance(word.value, bool):
        return word.written
    return word.value


def _misplaced(word: Word) -> str | None:
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
    if word.key in ("method", "methods", "diffing.method"):
        return f"'{word.text}': methods are chosen by {METHOD}=NAME or {METHOD}=[kl,diff_mining]."
    return None


def _cut(data: DataSet, preprocessing: Preprocessing) -> DataSet:
    """The texts cut as preprocessing says, where the data does not say it."""
    return dataclasses.replace(
        data,
        context_len=preprocessing.context_len if data.context_len is None else data.context_len,
        max_samples=preprocessing.max_samples_per_dataset if data.max_samples is None else data.max_samples,
    )


def _changed(config: Any) -> dict[str, Any]:
    """The options that are not at their default."""
    usual = type(config)()
    pairs = ((one.name, getattr(config, one.name)) for one in dataclasses.fields(config))
    return {name: value for name, value in pairs if value != getattr(usual, name)}


def _one_of(names: Sequence[str]) -> str:
    return f"The method '{names[0]}'" if len(names) == 1 else f"None of the methods {', '.join(names)}"


def _also(known: Iterable[str]) -> str:
    return f" It has {', '.join(known)}."


def _meant(name: str) -> str:
    every = {*GROUPS, *_SIMPLE, *_PARTS, *_SECTIONS, *(key for key in MOVED if "." not in key)}
    for head in (*_SECTIONS, *_PARTS):
        every |= {f"{head}.{key}" for key in hints(hints(RunConfig)[head])}
    found = near(name, every)
    return found if "mean" in found else " `finetrace run --cfg job` shows all."


def _cards() -> tuple[dict[str, Method], tuple[Broken, ...]]:
    return _cards_of(tuple(sys.path))


@lru_cache(maxsize=2)
def _cards_of(paths: tuple[str, ...]) -> tuple[dict[str, Method], tuple[Broken, ...]]:
    # Looking for installed methods costs tens of milliseconds, more than all the rest of a composition.
    return discover()


def compose_runs(
    words: Sequence[str], config_dir: Path | None = None, multirun: bool = False
) -> tuple[tuple[RunConfig, tuple[str, ...]], ...]:
    """Every run of a sweep with its own words, in the order of the words; without `multirun` the one run."""
    if not multirun:
        return ((compose_run(words, config_dir), tuple(words)),)
    problems: list[str] = []
    made: list[tuple[RunConfig, tuple[str, ...]]] = []
    for one in _expanded(words, config_dir):
        config, wrong = gather_run(one, config_dir)
        problems += wrong
        if config is not None:
            made.append((config, one))
    if problems:
        raise ConfigErrors(dict.fromkeys(problems))
    return tuple(made)


def _expanded(words: Sequence[str], config_dir: Path | None) -> list[tuple[str, ...]]:
    """The words of every run. What a glob of models or variants means depends on the organism, so they come last."""
    found: list[tuple[str, ...]] = [()]
    for text in words:
        try:
            word = parse(text)
        except BadInput:
            word = None
        swept = (text,) if word is None or not isinstance(word.sweep, tuple) else word.sweep
        found = [(*one, new) for one in found for new in swept]
    return found


def as_yaml(config: RunConfig) -> str:
    """The whole run as YAML, defaults and all; of the organism's fine-tunes only the one that is read."""
    cards, _ = _cards()
    shown = _plain(config)
    shown["organism"]["finetuned_models"] = {
        config.model.name: {config.organism_variant: _plain(config.variant)}
    }
    shown["diffing"]["methods"] = {
        name: _plain(check_options(cards[name], options)[0])
        for name, options in config.diffing.methods.items()
    }
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
