"""Supervised fine-tuning: rows to examples (`examples`), LoRA training (`sft`), progress."""
