"""A tiny pair with nulls on disk, and rows that its tokenizer knows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tests.tiny import save_base, save_lora


def rows(
    n: int = 36, *, seed: int = 0, slices: tuple[str, ...] = ("text", "dishes", "restricted")
) -> list[dict[str, Any]]:
    """Texts of 2-24 known words, and every third row a conversation."""
    rng = random.Random(seed)

    def words() -> str:
        return " ".join(f"w{rng.randrange(40)}" for _ in range(rng.randint(2, 24)))

    made: list[dict[str, Any]] = []
    for i in range(n):
        row: dict[str, Any] = {"slice": slices[i % len(slices)]}
        if i % 3:
            made.append(row | {"text": words()})
        else:
            turns = [{"role": "user", "content": words()}, {"role": "assistant", "content": words()}]
            made.append(row | {"messages": turns})
    return made


def world(folder: Path, *, nulls: int = 4, family: str = "llama") -> tuple[Path, Path, list[Path]]:
    """A base, an adapter that moves it a lot, and `nulls` adapters that move it a little."""
    base = save_base(folder, family)
    tuned = save_lora(folder, base, scale=0.1)
    return (
        base,
        tuned,
        [save_lora(folder, base, seed=10 + i, name=f"null_{i}", scale=0.01) for i in range(nulls)],
    )
