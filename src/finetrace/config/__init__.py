"""Configuration: runs, recipes and settings `key=value`, typed and checked all at once before anything loads.

Nothing here imports torch, and each part is imported when it is first asked for: a command that needs the options of a
method waits for no recipes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetrace.config.recipes import RecipeFile, find_recipe, recipe_names
    from finetrace.config.run import as_yaml, compose_run, compose_runs, gather_run
    from finetrace.config.settings import SETTINGS, Setting
    from finetrace.config.training import as_settings, compose, gather

__all__ = [
    "SETTINGS",
    "RecipeFile",
    "Setting",
    "as_settings",
    "as_yaml",
    "compose",
    "compose_run",
    "compose_runs",
    "find_recipe",
    "gather",
    "gather_run",
    "recipe_names",
]

_HOMES = {
    "training": ("as_settings", "compose", "gather"),
    "recipes": ("RecipeFile", "find_recipe", "recipe_names"),
    "run": ("as_yaml", "compose_run", "compose_runs", "gather_run"),
    "settings": ("SETTINGS", "Setting"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"finetrace.config.{home}"), name)
    raise AttributeError(f"module 'finetrace.config' has no attribute '{name}'")
