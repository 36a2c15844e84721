"""finetrace: what fine-tuning changed in a language model, and whether it cost the model its safety.

>>> import finetrace as ft                                                                       # doctest: +SKIP
>>> pair = ft.load_pair("Qwen/Qwen3-1.7B", "me/my-adapter")                                      # doctest: +SKIP
>>> found = ft.diff(pair, data="prompts.jsonl")                                                  # doctest: +SKIP
>>> found["kl"].numbers["kl_mean"].value                                                         # doctest: +SKIP
"""

from finetrace.api import audit, diff, load_pair

__version__ = "0.1.0"
__all__ = ["audit", "diff", "load_pair"]
