"""Supervised fine-tuning: LoRA training (`sft`), progress."""
