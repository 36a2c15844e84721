"""A recipe in, a stamped fine-tune out: settings checked at once, rows read and scanned, the cost told beforehand."""

from __future__ import annotations

from finetrace.api.train.rows import Given, TrainingRows, training_rows
from finetrace.api.train.run import adapter_folder, audit_command, draw, plan, run

__all__ = ["Given", "TrainingRows", "adapter_folder", "audit_command", "draw", "plan", "run", "training_rows"]
