"""Recipes by name: those that ship with the package, and a user's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.config.reading import read_yaml
from finetrace.core.errors import BadInput, unknown

__all__ = ["SHIPPED", "RecipeFile", "find_recipe", "recipe_names"]

SHIPPED = Path(__file__).parent / "yaml"
ASSETS = Path(__file__).parent / "assets"
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
_SUFFIXES = (".yaml", ".yml")
# Keys of a recipe file that are no settings.
SUMMARY, EXTENDS = "summary", "extends"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it is written. values: nested settings, as the file has them. extends: the recipe it starts from."""

    name: str
    path: Path
    values: dict[str, Any]
    summary: str = ""
    extends: str | None = None


def recipe_names(config_dir: Path | None = None) -> list[str]:
    """Every recipe that a name finds: the user's own and the shipped ones."""
    found = (path for folder in _folders(config_dir) for path in folder.glob("*.yaml"))
    return sorted({path.stem for path in found})


def find_recipe(given: str, config_dir: Path | None = None, *, beside: Path | None = None) -> RecipeFile:
    """A recipe by name or by path (what ends in .yaml, or holds a slash).

    Names are looked for in `config_dir/recipe`, then in `config_dir`, then among the shipped ones. A path is relative
    to `beside`, the folder of the recipe that names it, or to the working directory.
    """
    if given.endswith(_SUFFIXES) or "/" in given or "\\" in given:
        return _read((beside or Path()) / Path(given).expanduser())
    if _NAME.fullmatch(given):
        for folder in _folders(config_dir):
            if (path := folder / f"{given}.yaml").is_file():
                return _read(path)
    raise unknown("recipe", given, recipe_names(config_dir))


def _folders(config_dir: Path | None) -> list[Path]:
    own = [] if config_dir is None else [config_dir.expanduser() / "recipe", config_dir.expanduser()]
    return [*own, SHIPPED / "recipe"]


def _read(path: Path) -> RecipeFile:
    if path.is_dir():
        raise BadInput(f"The recipe {path} is a folder; name a file in it.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(f"There is no recipe file {path}: check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"The recipe {path} cannot be read: {error}") from None
    values = read_yaml(text, f"The recipe {path}")
    summary, extends = values.pop(SUMMARY, ""), values.pop(EXTENDS, None)
    if not isinstance(summary, str):
        raise BadInput(f"The recipe {path}: {SUMMARY} is no text.")
    if extends is not None and not isinstance(extends, str):
        raise BadInput(f"The recipe {path}: {EXTENDS} names one recipe.")
    return RecipeFile(path.stem, path, values, summary, extends)
