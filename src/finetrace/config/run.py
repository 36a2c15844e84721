"""The words of a run and the groups of YAML files, as one RunConfig; all that is wrong is told before anything loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from finetrace.config.fill import Told, hints, near
from finetrace.config.grammar import Word, parse
from finetrace.config.groups import METHOD, entry
from finetrace.config.methods import Asked, all_options, ask
from finetrace.config.root import SECTIONS, Root, read_root, simple_settings
from finetrace.config.sweep import expand
from finetrace.config.tree import AUTO, ModelEntry, OrganismEntry, RunConfig, Variant
from finetrace.config.typed import Words, filled, sort_words
from finetrace.core.errors import BadInput, ConfigErrors

__all__ = ["as_yaml", "compose_run", "compose_runs", "gather_run"]

T = TypeVar("T")
_WORLD = "tinyworld"
_DEFAULT = "default"
_NOBODY = object()


def compose_run(words: Sequence[str], config_dir: Path | None = None) -> RunConfig:
    """The run that `words` ask for (`organism=cake_bake`, `diffing/method=[kl,diff_mining]`, `data.context_len=256`).

    Later words win over earlier ones, words over files, files in `config_dir` over shipped ones. Raises ConfigErrors with
    every problem that can be seen without loading anything.
    """
    config, problems = gather_run(words, config_dir)
    if problems or config is None:
        raise ConfigErrors(problems)
    return config


def compose_runs(
    words: Sequence[str], config_dir: Path | None = None, multirun: bool = False
) -> tuple[tuple[RunConfig, tuple[str, ...]], ...]:
    """Every run of a sweep with its own words, the last word turning fastest; without `multirun` the one run.

    Sweeps are Hydra's: `a,b`, `choice(a,b)`, `range(1,4)`, and `glob(mix*)` over names of a group, over the models that an
    organism was trained on, or over its variants on a model. Raises ConfigErrors with the problems of all runs,
    BadInput for a sweep of nothing or of too much.
    """
    if not multirun:
        return ((compose_run(words, config_dir), tuple(words)),)
    problems: list[str] = []
    made: list[tuple[RunConfig, tuple[str, ...]]] = []
    for one in expand(words, config_dir):
        config, wrong = gather_run(one, config_dir)
        problems += wrong
        if config is not None:
            made.append((config, one))
    if problems:
        raise ConfigErrors(dict.fromkeys(problems))
    return tuple(made)


def gather_run(words: Sequence[str], config_dir: Path | None = None) -> tuple[RunConfig | None, list[str]]:
    """As `compose_run`, with the problems beside what could be made; None where organism, model or variant is unknown."""
    told = Told()
    if config_dir is not None and not config_dir.expanduser().is_dir():
        told.problems.append(f"--config-dir {config_dir} is not a folder.")
        config_dir = None
    parsed = [one for one in (_attempt(told, parse, word) for word in words) if one is not None]
    for word in parsed:
        if word.sweep is not None:
            told.problems.append(
                f"'{word.text}' is a sweep: add --multirun, or quote it where it is one text: {word.key}='\"a, b\"'."
            )
    root = _attempt(told, read_root, config_dir)
    config = (
        None
        if root is None
        else _compose([word for word in parsed if word.sweep is None], root, config_dir, told)
    )
    return config, list(dict.fromkeys(told.problems))


def _compose(given: Sequence[Word], root: Root, config_dir: Path | None, told: Told) -> RunConfig | None:
    told.problems.extend(root.problems)
    told.notes.extend(root.notes)
    words = sort_words(given, told)
    chosen = {**root.chosen, **words.chosen}
    asked = ask(chosen[METHOD], words.options, config_dir, told)
    simple = simple_settings(root, words, told)

    def part(kind: str, name: Any) -> Any:
        return _part(kind, name, words, asked, config_dir, told)

    data, infrastructure = part("data", chosen["data"]), part("infrastructure", chosen["infrastructure"])
    told_before = len(told.problems)
    organism: OrganismEntry | None = part("organism", chosen["organism"])
    whole = len(told.problems) == told_before  # of a broken file it cannot be said what it was trained on
    base = _first(organism if whole else None, told) if chosen["model"] == AUTO else chosen["model"]
    model = None if base is _NOBODY else part("model", base)
    variant = None
    if organism is not None and model is not None and whole:
        variant = _trained(organism, model, chosen["model"], simple["organism_variant"], told)
    above = {} if organism is None else organism.preprocessing_overrides
    sections = {name: _section(name, root, words, asked, above, told) for name in SECTIONS}
    if organism is None or model is None or variant is None or data is None or infrastructure is None:
        return None
    if data.name == _WORLD and model.model_id.partition("/")[0] != _WORLD:
        told.problems.append(
            f"data={_WORLD} belongs to the base {_WORLD}, and this is {model.name}: use data=bundled."
        )
    return RunConfig(
        organism=organism,
        model=model,
        variant=variant,
        data=data,
        infrastructure=infrastructure,
        pipeline=sections["pipeline"],
        preprocessing=sections["preprocessing"],
        diffing=dataclasses.replace(sections["diffing"], methods=asked.methods),
        notes=tuple(dict.fromkeys(told.notes)),
        **simple,
    )


def _attempt(told: Told, work: Callable[..., T], *arguments: Any) -> T | None:
    """What `work` gives, or None with what it says among the problems."""
    try:
        return work(*arguments)
    except ConfigErrors as error:
        told.problems.extend(error.problems)
    except BadInput as error:
        told.problems.append(str(error))
    return None


def _part(kind: str, name: Any, words: Words, asked: Asked, config_dir: Path | None, told: Told) -> Any:
    """The chosen entry of a group with what was typed over it; None where there is none."""
    if not isinstance(name, str):
        told.problems.append(f"{kind} is {name!r}; one is chosen by its name, as in {kind}=NAME.")
        return None
    found = _attempt(told, entry, kind, name, config_dir)
    if found is None:
        return None
    told.problems.extend(f"{found.path.name}: {problem}" for problem in found.problems)
    told.notes.extend(f"{found.path.name}: {note}" for note in found.notes)
    typed = [*asked.of(kind), *words.of(kind)]
    if not typed:
        return found.value
    return filled(type(found.value), found.values, typed, kind, told, said=found.problems)


def _section(
    name: str, root: Root, words: Words, asked: Asked, overrides: Mapping[str, Any], told: Told
) -> Any:
    """A section of config.yaml with what was typed over it; an organism's own preprocessing stands between."""
    above = overrides if name == "preprocessing" else {}
    typed = [*asked.of(name), *words.of(name)]
    if not typed and not above:
        return root.sections[name]
    return filled(hints(RunConfig)[name], {**root.values.get(name, {}), **above}, typed, name, told)


def _first(organism: OrganismEntry | None, told: Told) -> Any:
    """What `auto` stands for: the first base that the organism was trained on, or _NOBODY."""
    if organism is None:
        return _NOBODY
    if not organism.finetuned_models:
        told.problems.append(
            f"The organism '{organism.name}' names no model: choose one, as in model=qwen3_1_7B."
        )
        return _NOBODY
    return next(iter(organism.finetuned_models))


def _trained(
    organism: OrganismEntry, model: ModelEntry, chosen: Any, variant: str, told: Told
) -> Variant | None:
    """The fine-tune of a base; the base itself for a control that has none."""
    trained = organism.finetuned_models
    if organism.control and not trained:
        if variant != _DEFAULT:
            told.problems.append(
                f"The organism '{organism.name}' has no variant '{variant}': leave organism_variant out."
            )
        return Variant()
    name = model.name if model.name in trained or chosen not in trained else chosen
    if name not in trained:
        told.problems.append(
            f"The organism '{organism.name}' was not trained on '{name}'.{_near_of(name, trained)}"
        )
        return None
    if variant not in trained[name]:
        told.problems.append(
            f"The organism '{organism.name}' has no variant '{variant}' on '{name}'.{_near_of(variant, trained[name])}"
        )
        return None
    return trained[name][variant]


def _near_of(name: str, known: Mapping[str, Any]) -> str:
    hint = near(name, known)
    return f"{hint if 'mean' in hint else ''} There are: {', '.join(known)}."


def as_yaml(config: RunConfig) -> str:
    """The whole run as YAML, defaults and all; of the organism's fine-tunes only the one that is read."""
    shown = _plain(config)
    if config.organism.finetuned_models:
        of_model = {config.organism_variant: _plain(config.variant)}
        shown["organism"]["finetuned_models"] = {config.model.name: of_model}
    methods = config.diffing.methods
    shown["diffing"]["methods"] = {name: _plain(all_options(name, methods[name])) for name in methods}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
