"""What one experiment is: a recipe, its seeds, calibration sets and folders, checked before anything loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetrace.api import calibration
from finetrace.api.names import is_bundled, resolve
from finetrace.api.train import TrainingRows, training_rows
from finetrace.api.train import plan as plan_training
from finetrace.config import as_settings
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import digest
from finetrace.data import Row, read_rows
from finetrace.finetune.recipe import TrainRecipe
from finetrace.methods.neuron_drift import SETS, Config

__all__ = ["SETS", "Experiment", "plan"]

RECIPE, TINY = "seed003_alpaca_drift", "seed003_tinyworld"
RECORD = "experiment.json"
_EVERY = 10
# A training without checkpoints begins anew when it is killed: one for so many measurements.
_MEASUREMENTS = 5


@dataclass(frozen=True)
class Experiment:
    """recipe: of every training, but for its seed. seeds: how many trainings. out: what stays. scratch: what a phase needs
    only while it runs. given: calibration set -> file. config: of groups and comparisons. device: auto, cpu, cuda, ..."""

    recipe: TrainRecipe
    seeds: int
    out: Path
    scratch: Path
    given: Mapping[str, Path]
    config: Config
    device: str = "auto"
    reason: str | None = None

    @property
    def bundled(self) -> bool:
        return is_bundled(self.recipe.model)

    @property
    def base(self) -> str:
        return resolve(self.recipe.model)

    @property
    def groups(self) -> Path:
        return self.out / "neuron_groups"

    @property
    def models(self) -> Path:
        return self.out / "finetuned_models"

    @property
    def results(self) -> Path:
        return self.out / "results"

    def model(self, seed: int) -> Path:
        """Where the fine-tune of a seed is, once it is whole."""
        return self.models / f"seed_{seed}"

    def work(self, seed: int) -> Path:
        """Where a training lies while it runs."""
        return self.scratch / f"seed_{seed}"

    @cached_property
    def rows(self) -> TrainingRows:
        return training_rows(self.recipe)

    @cached_property
    def sets(self) -> dict[str, list[Row]]:
        """The calibration sets: the user's, else the bundled world's own; at most `config.samples` of each."""
        return {name: self._set(name)[: self.config.samples] for name in SETS}

    def _set(self, name: str) -> list[Row]:
        if name in self.given:
            return list(calibration.read(name, self.given[name]))
        from finetrace.organisms.calibration import calibration as bundled_set

        return read_rows(bundled_set(name, self.config.samples, self.config.seed))

    def seeded(self, seed: int) -> TrainRecipe:
        """The recipe of one training."""
        train = replace(self.recipe.train, seed=self.recipe.train.seed + seed)
        return replace(self.recipe, train=train)

    def record(self) -> None:
        """Writes what the experiment is into its folder, or raises BadInput where that holds another one."""
        path, mine = self.out / RECORD, self._identity()
        if path.is_file():
            theirs = read_json(path)
            apart = _differing(theirs, mine)
            if apart:
                raise BadInput(
                    f"{self.out} holds another experiment ({'; '.join(apart[:4])}): choose another folder with --out."
                )
            return
        write_json(path, mine)

    def _identity(self) -> dict[str, Any]:
        from finetrace.models.identity import identity
        from finetrace.models.source import resolve as resolve_source

        return {
            "schema": 1,
            "settings": as_settings(self.recipe),
            "groups": asdict(self.config),
            "base": identity(resolve_source(self.base, revision=self.recipe.revision)),
            "rows": digest([str(row) for row in self.rows.rows]),
            "sets": {name: calibration.identity(rows) for name, rows in self.sets.items()},
        }


def _differing(theirs: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*theirs, *mine}):
        one, two = theirs.get(key), mine.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += _differing(one, two, "" if key == "settings" else f"{key}.")
        elif one != two:
            told = len(f"{one}{two}") < 60
            found.append(f"{prefix}{key}: {one} there, {two} here" if told else f"other {prefix}{key}")
    return found


def plan(
    words: Sequence[str] = (),
    *,
    out: Path,
    scratch: Path | None = None,
    seeds: int = 5,
    sets: Mapping[str, Path] | None = None,
    samples: int = 128,
    device: str = "auto",
    reason: str | None = None,
    config_dir: Path | None = None,
) -> Experiment:
    """The experiment that `recipe=NAME` and `key=value` say: on the bundled tiny world unless a model is named.

    Raises ConfigErrors with everything that can be seen to be wrong without loading a model.
    """
    words = _with_recipe(words)
    problems: list[str] = []
    recipe = None
    try:
        recipe = plan_training(words, out=out, config_dir=config_dir)
    except ConfigErrors as error:
        problems += error.problems
    if seeds < 1:
        problems.append(f"--seeds is {seeds}; it is the number of trainings, 1 or more.")
    if samples < 4:
        problems.append(f"--samples is {samples}; a calibration set needs 4 or more.")
    given = dict(sets or {})
    problems += _set_problems(given, bundled=recipe is None or is_bundled(recipe.model))
    if scratch is not None and scratch.exists() and not scratch.is_dir():
        problems.append(f"--scratch {scratch} is a file; name a folder.")
    if problems or recipe is None:
        raise ConfigErrors(dict.fromkeys(problems))
    recipe = _tracked(recipe)
    config = Config(
        top_k=recipe.snip.top_k,
        p=recipe.set_diff.p,
        q=recipe.set_diff.q,
        samples=samples,
        seed=recipe.train.seed,
    )
    return Experiment(recipe, seeds, out, scratch or out / ".scratch", given, config, device, reason)


def _with_recipe(words: Sequence[str]) -> list[str]:
    """The words, with the seed's recipe for a model that is named, and the tiny world's where none is."""
    keys = {word.partition("=")[0].strip() for word in words}
    if "recipe" in keys:
        return list(words)
    return [f"recipe={RECIPE if 'model' in keys else TINY}", *words]


def _set_problems(given: Mapping[str, Path], *, bundled: bool) -> list[str]:
    found = []
    for name, path in given.items():
        try:
            calibration.read(name, path)
        except BadInput as error:
            found.append(str(error))
    for name in () if bundled else SETS:
        if name not in given:
            found.append(
                f"There is no {name} set: pass --{name}-set FILE with JSONL rows whose `messages` end with an assistant's "
                "answer. Only the bundled tiny world brings its own."
            )
    return found


def _tracked(recipe: TrainRecipe) -> TrainRecipe:
    """With drift measured, and checkpoints to go on from; the probe is `finetrace train`'s."""
    every = recipe.drift.every or _EVERY
    saved = recipe.train.checkpoint_every or _MEASUREMENTS * every
    return replace(
        recipe,
        drift=replace(recipe.drift, every=every),
        train=replace(recipe.train, checkpoint_every=saved, keep=1),
        probe=replace(recipe.probe, every=0),
    )
