"""Shelves of runs whose numbers are known, made in milliseconds without a model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.shelf import Address, Figures, Shelf

PROTOCOL: dict[str, Any] = {
    "base": "b" * 64, "tokenizer": "t" * 64, "vocabulary": "the base's", "template": None, "system": None,
    "corpus": "c" * 64, "slices": ["text", "chat"], "context": None, "seed": 0, "dtype": "torch.float32", "device": "cpu",
    "shape": {"batch_size": 16, "shard_tokens": 16384, "compile": False}, "quantization": None, "attention": None,
    "method": "kl", "version": 1, "config": {"passages": 8, "positions": 64},
}  # fmt: skip
NULLS = (0.010, 0.012, 0.009, 0.011)
TEXTS = 40


def estimate(value: float | None, own: int = 0, unit: str = "nats/token") -> Estimate:
    """A figure with replicates that share most of their spread with every other one's, as runs on the same texts do."""
    if value is None:
        return Estimate(None, unit, 0, 0)
    shared, alone = np.random.default_rng(0).normal(size=200), np.random.default_rng(1 + own).normal(size=200)
    drawn = value * np.exp(0.05 * shared + 0.01 * alone)
    return Estimate(value, unit, 900, TEXTS, value * 0.9, value * 1.1, drawn)


def put(
    root: Path,
    organism: str,
    value: float | None,
    *,
    variant: str = "default",
    contrast: str = "pair",
    base: str = "org/small",
    method: str = "kl",
    numbers: dict[str, float | None] | None = None,
    protocol: dict[str, Any] | None = PROTOCOL,
    weights: str = "",
    **manifest: Any,
) -> Path:
    """Saves one run. numbers: beside kl_mean; slice `chat` has twice the figures of `text`. weights: what the other side's
    content is, its names unless given."""
    own = int(hashlib.sha256(f"{organism}{variant}".encode()).hexdigest()[:6], 16)
    figures = {"kl_mean": value} if numbers is None else numbers
    found = {key: estimate(one, own) for key, one in figures.items()}
    twice = {key: estimate(None if one is None else 2 * one, own) for key, one in figures.items()}
    told = {
        "method": method,
        "version": 1,
        "contrast": contrast,
        "scale": 1.0,
        "other": {"sha256": weights or f"{organism} {variant}"},
        "created": "2026-11-20T10:00:00+00:00",
        "data": "my.jsonl",
        **({} if protocol is None else {"protocol": {**protocol, "method": method}}),
        **manifest,
    }
    settings = repr((organism, variant, contrast, base, method, protocol, weights, manifest))
    key = hashlib.sha256(settings.encode()).hexdigest()[:20]
    address = Address(base, organism, variant if contrast == "pair" else "default", method, key)
    return Shelf(root / "runs").save(address, Figures(found, {"text": found, "chat": twice}), told)


def with_nulls(root: Path, values: tuple[float, ...] = NULLS, **options: Any) -> Path:
    for number, value in enumerate(values, 1):
        put(root, f"null_{number}", value, contrast=f"null:null_{number}", **options)
    return root
