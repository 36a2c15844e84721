"""Seed 003's experiment: groups of weights by scores, fine-tunes that are tracked, and what is said of them at the end."""

from __future__ import annotations

from finetrace.api.drift.experiment import Experiment, plan
from finetrace.api.drift.phases import PHASES, Tell, run
from finetrace.api.drift.setup import Check, check

__all__ = ["PHASES", "Check", "Experiment", "Tell", "check", "plan", "run"]
