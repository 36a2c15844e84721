"""sae_difference and crosscoder where no dictionary can be trained, or little can be said: a reason, and no figure that is made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.dictionaries.desks import desk_of
from torch import Tensor

from finetrace.core.page import Warning
from finetrace.core.result import encode
from finetrace.dictionaries.findings import DEAD, DIVERGED, FEW, IDENTICAL, LOST, STILL
from finetrace.methods import crosscoder, sae_difference
from finetrace.methods.crosscoder.describe import describe as describe_crosscoder
from finetrace.methods.crosscoder.ranking import top_tokens as crosscoder_tokens
from finetrace.methods.crosscoder.run import run as run_crosscoder
from finetrace.methods.sae_difference.describe import describe as describe_difference
from finetrace.methods.sae_difference.ranking import top_tokens as difference_tokens
from finetrace.methods.sae_difference.run import run as run_difference

D, LENGTH, TEXTS = 8, 10, 60
SMALL = {"latents": 12, "k": 2, "batch": 64, "steps": 60}


@dataclass(frozen=True)
class Trains:
    """One of the methods that train a dictionary."""

    config: Callable[..., Any]
    run: Callable[[Any, Any], Any]
    describe: Callable[..., Any]
    top_tokens: Callable[..., tuple[int, ...]]


METHODS = {
    "sae_difference": Trains(sae_difference.Config, run_difference, describe_difference, difference_tokens),
    "crosscoder": Trains(crosscoder.Config, run_crosscoder, describe_crosscoder, crosscoder_tokens),
}
BOTH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def states(texts: int = TEXTS, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    base, change = torch.randn(2, texts, length + 2, D, generator=g)
    return base, base + 0.3 * change


def found(
    method: Trains, base: Tensor, tuned: Tensor, folder: Path, told: list[str] | None = None, **options: Any
) -> Any:
    slices = options.pop("slices", ("even", "odd"))
    desk = desk_of(base, tuned, torch.eye(D), folder, told=told, slices=slices)
    return method.run(method.config(**SMALL | options), desk)


def holds_nothing(method: Trains, result: Any, says: str) -> None:
    """No figure, no words, no dictionary; a page that says why, alone and as a null of itself."""
    figures = [*result.numbers.values(), *(one for keys in result.slices.values() for one in keys.values())]
    assert {one.value for one in figures} == {None}
    assert result.fitted is None
    assert not len(result.shown)
    assert method.top_tokens(result, "even", nulls=[result]) == ()
    encode(result)
    for page in (method.describe(result), method.describe(result, [result])):
        warnings = " ".join(block.text for block in page.blocks if isinstance(block, Warning))
        assert says in warnings
        assert page.summary


@BOTH
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_a_layer_at_which_nothing_changed_has_a_change_of_zero_and_nothing_else(
    method: Trains, noise: float, tmp_path: Path
):
    base, tuned = states()
    result = found(method, base, base * (1 + noise * tuned), tmp_path)
    assert result.reason == IDENTICAL
    values = {key: one.value for key, one in result.numbers.items()}
    assert values.pop("explained_change") == 0
    assert set(values.values()) == {None}
    assert method.top_tokens(result, "even") == ()
    pair = found(method, base, tuned, tmp_path / "pair")
    assert "(0 to 0 for 1 nulls)" in method.describe(pair, [result]).summary
    encode(result)


@BOTH
def test_one_text_gives_no_figures_whichever_side_it_falls_on(method: Trains, tmp_path: Path):
    for held in (0.001, 0.999):
        result = found(method, *states(1, 40), tmp_path / str(held), held=held)
        assert result.rows + result.held == 40
        assert {one.value for one in result.numbers.values()} == {None}
        assert (result.reason == FEW) == (result.rows == 0)
        assert ("No text was held out" in method.describe(result).summary) == (result.held == 0)
        encode(result)


@BOTH
def test_fewer_tokens_than_dimensions(method: Trains, tmp_path: Path):
    told: list[str] = []
    result = found(method, *states(2, 3), tmp_path, told)
    assert result.reason == FEW
    assert f"{result.rows} tokens of {D} dimensions" in told[0]
    holds_nothing(method, result, "any direction fits")


@BOTH
def test_one_slice_is_the_whole(method: Trains, tmp_path: Path):
    result = found(method, *states(), tmp_path, slices=("all",))
    assert result.slices.keys() == {"all"}
    for key, one in result.slices["all"].items():
        assert one.value == result.numbers[key].value is not None
        assert one.n == result.held
    assert {passage.slice for passage in result.passages} == {"all"}


@BOTH
def test_all_latents_dead(method: Trains, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr("finetrace.dictionaries.settings.Training.idle_rows", lambda self: 1)
    result = found(method, *states(), tmp_path, told, kind="relu", l1=1e9, steps=400)
    assert result.reason == DEAD
    assert any("latents are dead" in line for line in told)
    holds_nothing(method, result, "All latents died")


def test_a_training_that_diverges(tmp_path: Path):
    told: list[str] = []
    method = METHODS["crosscoder"]
    result = found(method, *states(), tmp_path, told, kind="relu", lr=1e25)
    assert result.reason == DIVERGED
    assert any("The loss is" in line for line in told)
    holds_nothing(method, result, "diverged")


@BOTH
def test_latents_that_fire_nowhere_are_not_read(method: Trains, tmp_path: Path):
    result = found(method, *states(), tmp_path)
    silent = replace(result, shown=result.shown[:0], passages=())
    page = method.describe(silent)
    assert any(
        "No latent fires on any text" in block.text for block in page.blocks if isinstance(block, Warning)
    )
    assert "push up “f" in page.summary


@BOTH
def test_states_that_are_not_finite_count_nowhere(method: Trains, tmp_path: Path):
    base, tuned = states()
    broken = tuned.clone()
    broken[::3, 2, 1] = float("nan")
    base[::4, 3, 0] = float("inf")
    result = found(method, base, broken, tmp_path / "some")
    assert result.lost == 35
    assert result.rows + result.held == TEXTS * LENGTH - 35
    assert result.reason == ""
    assert all(one.value is not None for one in result.numbers.values())
    assert any(
        "35 tokens had states" in block.text
        for block in method.describe(result).blocks
        if isinstance(block, Warning)
    )
    none = found(method, base, torch.full_like(tuned, float("nan")), tmp_path / "all")
    assert none.reason == LOST
    assert none.lost == TEXTS * LENGTH
    holds_nothing(method, none, "finite in both models")


def test_states_that_never_move_are_no_ground_for_a_crosscoder(tmp_path: Path):
    base, tuned = states()
    method = METHODS["crosscoder"]
    result = found(method, torch.ones_like(base), tuned, tmp_path)
    assert result.reason == STILL
    holds_nothing(method, result, "the same at (nearly) every one")


def test_a_change_at_so_few_tokens_that_none_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rows that say how all are normalised are a sample: here they are those without a change."""
    base, _ = states(TEXTS, LENGTH)
    tuned = base.clone()
    tuned[-1, 5] += 1.0
    monkeypatch.setattr("finetrace.dictionaries.training.take", lambda rows, count: torch.zeros(64, 1, D))
    method = METHODS["sae_difference"]
    result = found(method, base, tuned, tmp_path, held=0.01)
    assert result.reason == STILL
    holds_nothing(method, result, "the same at (nearly) every one")
