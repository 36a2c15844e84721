"""Configuration: recipes in YAML and settings `key=value`, typed and checked all at once before anything loads.

Nothing here imports torch.
"""

from __future__ import annotations

from finetrace.config.compose import compose
from finetrace.config.recipes import RecipeFile, find_recipe, recipe_names
from finetrace.config.settings import SETTINGS, Setting

__all__ = ["SETTINGS", "RecipeFile", "Setting", "compose", "find_recipe", "recipe_names"]
