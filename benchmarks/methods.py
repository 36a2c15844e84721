"""The case `methods`: what diff mining and the activation-difference lens add to a pass that `kl` makes anyway."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from benchmarks.passing import Observers, cards, corpus_of, opened, passed
from finetrace.data import padded_tokens, shards
from finetrace.data.corpus import Corpus
from finetrace.engine import PAIR, Contrast, Shape
from finetrace.models import Pair

MINING, LENS = "diff_mining", "activation_difference_lens"
ARMS = {
    "kl": ("kl",),
    "kl_mining": ("kl", MINING),
    "kl_lens": ("kl", LENS),
    "all": ("kl", MINING, LENS),
}
_NULLS = ("null_0", "null_1")
CONTRASTS = (Contrast(PAIR, "tuned"), *(Contrast(f"null:{name}", name) for name in _NULLS))
# The corpus is read once, and as two and four times as many texts.
TIMES = (1, 2, 4)
MOST = 1.3


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    sides = len(CONTRASTS) + 1

    @cache
    def pair() -> Pair:
        return opened(folder, dtype, _NULLS)

    @cache
    def corpus(times: int) -> Corpus:
        return corpus_of(pair(), preset, times)

    def passing(methods: Sequence[str], times: int = 1) -> Callable[[], Observers]:
        known, texts = cards(methods), corpus(times)
        return lambda: passed(pair(), texts, known, CONTRASTS, Shape(batch_size=preset.batch), folder)

    def floor() -> Work:
        padded, scored = padded_tokens(corpus(1), preset.batch), corpus(1).scored
        shapes = [(padded, i, o) for _ in range(sides * preset.layers) for i, o in preset.block_shapes()]
        return products([*shapes, *[(scored, preset.d, preset.vocab)] * sides], dtype)

    padded, scored = padded_tokens(corpus(1), preset.batch), corpus(1).scored
    flop = sides * (preset.trunk_flop(padded) + preset.head_flop(scored))
    arms = {name: Arm(lambda methods=methods: passing(methods), flop) for name, methods in ARMS.items()}
    longer = {
        f"{name}_x{times}": Arm(lambda methods=methods, times=times: passing(methods, times), times * flop)
        for name, methods in ARMS.items()
        if name in {"kl", "all"}
        for times in TIMES[1:]
    }
    return Case(
        "methods",
        {**arms, "floor": Arm(floor, flop)},
        "work",
        goal,
        tuple(ARMS),
        reference="kl",
        longer=longer,
        notes=lambda: notes(lambda times: (corpus(times), passing(ARMS["all"], times)())),
    )


def notes(passed: Callable[[int], tuple[Corpus, Observers]]) -> dict[str, Any]:
    """What one contrast's observers hold, on one, two and four times the texts; and what a result takes after a pass.

    state: bytes by method; fixed: of what has no row for each text; per_text: of a text's row. results: CPU seconds of
    one `result()`, which is made once for a contrast however long the corpus is.
    """
    state: dict[str, dict[str, list[float]]] = {}
    results: dict[str, float] = {}
    sizes = []
    for times in TIMES:
        corpus, observers = passed(times)
        sizes.append({"texts": len(corpus), "tokens": corpus.scored, "shards": len(shards(corpus))})
        for (method, label), observer in observers.items():
            if label == PAIR:
                fixed, per_text = held(observer.state(), len(corpus))
                of = state.setdefault(method, {"fixed": [], "per_text": []})
                of["fixed"].append(fixed)
                of["per_text"].append(round(per_text, 1))
                if times == 1:
                    results[method] = _seconds(observer.result)
    return {"corpora": sizes, "state": state, "results": results}


def held(state: Mapping[str, Tensor], texts: int) -> tuple[int, float]:
    """Bytes of a state but for the columns with a row a text; and of those, bytes a text."""
    rows = sum(t.nbytes for t in state.values() if t.ndim and len(t) == texts)
    return sum(t.nbytes for t in state.values()) - rows, rows / texts


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return round(time.process_time() - began, 3)


def cost(ratio: Mapping[str, float]) -> dict[str, float]:
    """An arm's time over `kl`'s, from `kl`'s over the arm's."""
    return {
        "median": round(1 / ratio["median"], 3),
        "low": round(1 / ratio["high"], 3),
        "high": round(1 / ratio["low"], 3),
    }


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    costs = {name: cost(figures["arms"][name]["ratio"]) for name in ARMS if name != "kl"}
    fixed = {method: of["fixed"] for method, of in figures["notes"]["state"].items()}
    return {
        "name": f"diff_mining and activation_difference_lens in the same pass as kl: <= {MOST} times kl's time",
        "measured": costs,
        "fixed_state": fixed,
        "reached": costs["all"]["median"] <= MOST,
    }
