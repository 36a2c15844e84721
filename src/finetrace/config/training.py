"""A recipe file, the recipes it extends and what was typed, as one TrainRecipe; all that is wrong is told at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from finetrace.config.reading import flat, plain
from finetrace.config.recipes import RecipeFile, find_recipe, recipe_names
from finetrace.config.settings import SETTINGS, Setting, find
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.finetune.recipe import TrainRecipe

__all__ = ["as_settings", "compose", "gather"]

RECIPE = "recipe"
# A setting -> those of an earlier layer that were about its old value: another data set has another revision, and
# whoever asks for epochs does not want the recipe's number of steps.
_FORGETS = {
    "model": ("revision",),
    "data.source": ("data.revision", "data.split"),
    "train.epochs": ("train.max_steps",),
}
_DEEPEST = 8


@dataclass(frozen=True)
class _Layer:
    """Settings from one place. where: how errors call it. values: name as written -> value."""

    where: str
    values: dict[str, Any]


def compose(words: Sequence[str], config_dir: Path | None = None) -> TrainRecipe:
    """`recipe=NAME` and `key=value`, as typed, over the recipe's own values and the defaults of TrainRecipe.

    Later words win over earlier ones. A bare last part stands for its dotted name where there is only one such
    (`lr`, `max_steps`, `batch`), and `data` for `data.source`. Raises ConfigErrors with every problem that can be
    seen without loading anything.
    """
    recipe, problems = gather(words, config_dir)
    if problems or recipe is None:
        raise ConfigErrors(problems)
    return recipe


def gather(words: Sequence[str], config_dir: Path | None = None) -> tuple[TrainRecipe | None, list[str]]:
    """As `compose`, with the problems beside what could be made; None where there is no recipe to speak of."""
    if not words:
        known = ", ".join(recipe_names(config_dir))
        return None, [f"Nothing says what to train: recipe=NAME is one of {known}."]
    problems: list[str] = []
    typed, name = _typed(words, problems)
    if config_dir is not None and not config_dir.expanduser().is_dir():
        problems.append(f"--config-dir {config_dir} is not a folder.")
    layers, label = [], None
    if name is not None:
        try:
            chain = _chain(find_recipe(name, config_dir), config_dir)
        except BadInput as error:
            # Its settings are missing now, which is not one more mistake; what was typed can still be looked at.
            _fill([_Layer("", typed)], problems, None)
            return None, [str(error), *problems]
        layers = [_Layer(f"{file.path.name}: ", flat(file.values)) for file in chain]
        label = chain[-1].name
    made = _fill([*layers, _Layer("", typed)], problems, label)
    return made, list(dict.fromkeys([*problems, *made.problems()]))


def _typed(words: Sequence[str], problems: list[str]) -> tuple[dict[str, Any], str | None]:
    """What was typed: key -> text, and the recipe's name."""
    typed: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip():
            hint = f" Did you mean recipe={word}?" if word in recipe_names() else ""
            problems.append(f"'{word}' is no setting: write key=value, as in lr=1e-4.{hint}")
        else:
            typed[key.strip()] = value.strip()
    return typed, typed.pop(RECIPE, None)


def _chain(last: RecipeFile, config_dir: Path | None) -> list[RecipeFile]:
    """The recipe and those it extends, the first of them first."""
    chain = [last]
    while (above := chain[0].extends) is not None:
        chain.insert(0, find_recipe(above, config_dir, beside=chain[0].path.parent))
        if chain[0].path in [file.path for file in chain[1:]] or len(chain) > _DEEPEST:
            raise BadInput(f"The recipe {last.path} extends itself: {' <- '.join(f.name for f in chain)}.")
    return chain


def _fill(layers: Sequence[_Layer], problems: list[str], label: str | None) -> TrainRecipe:
    """The recipe of all layers, later ones over earlier ones; what cannot be set is left as it was and told."""
    tree = OmegaConf.structured(TrainRecipe)
    _unlock(tree)
    if label is not None:
        OmegaConf.update(tree, "name", label)
    for layer in layers:
        given = dict(_known(layer, problems))
        names = {setting.name for setting in given}
        if names & {"train.max_steps", "train.epochs"} and "train.warmup" not in names:
            _share_of_steps(tree)
        for old in (old for name in names for old in _FORGETS.get(name, ())):
            OmegaConf.update(tree, old, None)
        for setting, value in given.items():
            if (wrong := _set(tree, setting, value)) is not None:
                problems.append(f"{layer.where}{setting.name} {wrong}")
    return _object(TrainRecipe, OmegaConf.to_container(tree))


def _known(layer: _Layer, problems: list[str]) -> Iterator[tuple[Setting, Any]]:
    for name, value in layer.values.items():
        try:
            setting = find(name)
        except BadInput as error:
            problems.append(f"{layer.where}{error}")
            continue
        yield setting, value


def _set(tree: DictConfig, setting: Setting, value: Any) -> str | None:
    """Sets one value; returns what is wrong with it, if anything."""
    if (wrong := plain(value)) is not None:
        return wrong
    shown = value
    if isinstance(value, str) and (setting.many or setting.optional):
        value = setting.parse(value)
    if setting.kind is bool and not isinstance(value, bool) and str(value).lower() not in ("true", "false"):
        return f"is {shown!r}; it takes {setting.takes}"
    try:
        OmegaConf.update(tree, setting.name, value)
    except OmegaConfBaseException:
        return f"is {shown!r}; it takes {setting.takes}"
    return None


def _share_of_steps(tree: DictConfig) -> None:
    """A warm-up counted in the steps of an earlier layer, as a share of them: so it fits another number of steps."""
    train = tree.train
    if train.max_steps is not None and train.warmup >= 1:
        train.warmup /= train.max_steps


def _unlock(tree: DictConfig) -> None:
    """Frozen dataclasses make read-only nodes; the values here are still being gathered."""
    OmegaConf.set_readonly(tree, None)
    for key in tree:
        if OmegaConf.is_dict(tree[key]):
            _unlock(tree[key])


def _object(kind: Any, values: Any) -> Any:
    """A dataclass from plain values, lists made tuples."""
    hints = {field.name: field.default_factory for field in dataclasses.fields(kind)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        part = hints[name]
        if isinstance(value, dict):
            made[name] = _object(part, value)
        else:
            made[name] = tuple(value) if isinstance(value, list) else value
    return kind(**made)


def as_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """The recipe by dotted names, as JSON would hold it: `compose` of these gives the recipe back."""
    values = flat(dataclasses.asdict(recipe))
    return {
        name: list(values[name]) if isinstance(values[name], tuple) else values[name] for name in SETTINGS
    }
