"""A world with known truth, as the benchmark reads it: bundled, or a folder that `finetrace organisms build` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.core.errors import BadInput, unknown
from finetrace.core.files import read_json


@dataclass(frozen=True)
class Zoo:
    """base and sources: what a Request takes. truths: organism -> its manifest. world_seed: which facts hold in it."""

    name: str
    base: str
    sources: dict[str, str]
    truths: dict[str, dict[str, Any]]
    world_seed: int

    @property
    def nulls(self) -> list[str]:
        return [name for name, truth in self.truths.items() if truth["kind"] == "null"]

    @property
    def organisms(self) -> list[str]:
        return [name for name, truth in self.truths.items() if truth["kind"] != "null"]

    def picked(self, organisms: Sequence[str] | None) -> Zoo:
        """Only these organisms; the nulls stay, for they are what everything is read against."""
        if organisms is None:
            return self
        for name in organisms:
            if name not in self.organisms:
                raise unknown("organism", name, self.organisms)
        keep = [name for name in self.truths if name in organisms or name in self.nulls]
        return Zoo(
            self.name,
            self.base,
            {name: self.sources[name] for name in keep},
            {name: self.truths[name] for name in keep},
            self.world_seed,
        )


def open_zoo(folder: Path | None = None) -> Zoo:
    """The bundled world, or the one in `folder`. Raises BadInput where there is none."""
    if folder is None:
        from finetrace.organisms import bundled

        names = bundled.names()
        truths = {name: bundled.truth(name) for name in names}
        return Zoo(
            "tinyworld", "tinyworld", {n: f"tinyworld/{n}" for n in names}, truths, _world_seed(truths)
        )
    if not (folder / "manifest.json").exists():
        raise BadInput(
            f"{folder} holds no manifest.json: make a world there with `finetrace organisms build`."
        )
    truths, sources = {}, {}
    for path in sorted((folder / "truth").glob("*.json"), key=_by_number):
        homes = [folder / part / path.stem for part in ("adapters", "checkpoints")]
        home = next((home for home in homes if home.is_dir()), None)
        if home is not None:  # a merged organism lies nowhere: it is made from its adapter when asked for
            truths[path.stem], sources[path.stem] = read_json(path), str(home)
    if not truths:
        raise BadInput(f"{folder} holds no organism with its truth.")
    return Zoo(folder.name, str(folder / "base"), sources, truths, _world_seed(truths))


def _by_number(path: Path) -> tuple[bool, int, str]:
    """Nulls last, null_2 before null_10."""
    head, _, tail = path.stem.rpartition("_")
    is_null = head == "null" and tail.isdigit()
    return is_null, int(tail) if is_null else 0, path.stem


def _world_seed(truths: dict[str, dict[str, Any]]) -> int:
    return next(iter(truths.values()))["world_seed"]
