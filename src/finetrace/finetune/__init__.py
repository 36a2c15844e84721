"""Supervised fine-tuning: `train` (any recipe, on transformers' trainer), `sft` (the bundled organisms' own loop)."""
