"""Pairs of models, loaded once and read as one object."""

from finetrace.models.pair import Pair, check_head, open_pair

__all__ = ["Pair", "check_head", "open_pair"]
