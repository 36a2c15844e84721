"""Configuration: recipes in YAML and settings `key=value`, typed and checked all at once before anything loads.

Nothing here imports torch.
"""

from __future__ import annotations

from finetrace.config.compose import as_settings, compose, gather
from finetrace.config.recipes import RecipeFile, find_recipe, recipe_names
from finetrace.config.settings import SETTINGS, Setting

__all__ = [
    "SETTINGS",
    "RecipeFile",
    "Setting",
    "as_settings",
    "compose",
    "find_recipe",
    "gather",
    "recipe_names",
]
