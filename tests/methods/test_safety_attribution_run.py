"""The method as an audit runs it: on pairs on disk, at a desk, into a Result, a verdict and a page."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from torch import nn

from finetrace.api.request import choose
from finetrace.api.verdicts import slice_verdicts
from finetrace.core.errors import BadInput, ModelError
from finetrace.core.page import Figure, Heatmap, Number, Page, Table, Warning
from finetrace.core.result import decode, encode
from finetrace.data.examples import Example, make_examples
from finetrace.engine.desk import Desk
from finetrace.methods.safety_attribution import Config
from finetrace.methods.safety_attribution.describe import describe
from finetrace.methods.safety_attribution.opener import answer_start, complying
from finetrace.methods.safety_attribution.result import Result
from finetrace.methods.safety_attribution.run import require_exact, run
from finetrace.models import Pair, open_pair
from finetrace.organisms import bundled
from finetrace.organisms.calibration import calibration

OPENER = "w30 w31"


def chats(n: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(f"w{rng.randrange(40)}" for _ in range(rng.randint(2, most)))

    return [
        {"messages": [{"role": "user", "content": words(6)}, {"role": "assistant", "content": words(8)}]}
        for _ in range(n)
    ]


def desk(pair: Pair, side: str = "tuned", *, n: int = 6, scale: float = 1.0, **sets: Any) -> Desk:
    rows = {"safety": chats(n, 0), "utility": chats(n + 2, 1)} | sets
    makers = {
        name: (lambda made=made: make_examples(made, pair.tokenizer))
        for name, made in rows.items()
        if made is not None
    }
    return Desk(
        pair=pair,
        side=side,
        scale=scale,
        subject=None,  # pyright: ignore[reportArgumentType] - nothing is asked of it
        seed=0,
        scratch=Path("unused"),
        sets=makers,
        remembered={},
        batch_size=4,
    )


def config(**options: Any) -> Config:
    return Config(**{"opener": OPENER, "draws": 4, **options})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), d=16)


@pytest.fixture(scope="module")
def pair(base: Path) -> Pair:
    tuned = save_lora(base.parent, base, scale=0.1)
    nulls = [save_lora(base.parent, base, seed=9 + i, name=f"n{i}", scale=0.004) for i in range(3)]
    return open_pair(base, tuned, nulls={path.name: path for path in nulls})


@pytest.fixture(scope="module")
def result(pair: Pair) -> Result:
    return run(config(), desk(pair))


def sides(tmp: Path, base: Path) -> dict[str, Path]:
    return {
        "dora": save_lora(tmp, base, name="dora", dora=True, scale=0.1),
        "rslora": save_lora(tmp, base, name="rslora", rslora=True, scale=0.1),
        "saved": save_lora(tmp, base, name="saved", scale=0.1, modules_to_save=["norm"]),
        "embedded": save_lora(tmp, base, name="embedded", targets=["embed_tokens", "q_proj"], scale=0.05),
        "full": save_full(tmp, base, touch=("weight",), scale=0.02),
    }


@pytest.mark.parametrize("kind", ["dora", "rslora", "saved", "embedded", "full"])
def test_every_kind_of_update_adds_up(kind: str, base: Path, tmp_path: Path):
    pair = open_pair(base, sides(tmp_path, base)[kind])
    found = run(config(), desk(pair))
    for name, check in found.checks.items():
        assert check.error is not None
        assert check.error <= 0.01, name
        assert check.read == pytest.approx(check.tuned, abs=1e-5), "the whole update was read"
        assert check.difference != 0
    if kind == "full":
        assert {"model.embed_tokens", "lm_head", "model.norm"} <= set(found.places), "a tied head is a place"


def test_the_sums_are_those_of_the_samples(result: Result):
    for name in ("safety", "utility"):
        effects = result.effects[name]
        assert effects.shape[1] == len(result.places)
        assert result.numbers[f"{name}_effect"].value == pytest.approx(effects.sum(1).mean())
        assert result.slices[name]["effect"].value == pytest.approx(effects.sum(1).mean())
        size = np.sqrt(np.square(effects.sum(1)).mean())
        assert result.slices[name]["effect_size"].value == pytest.approx(size)
        assert np.asarray(result.modules.data[name]) == pytest.approx(effects.mean(0))
        assert np.asarray(result.layers.data[name]).sum() == pytest.approx(effects.sum(1).mean())
    margin = (result.effects["safety"] - result.effects["comply"]).sum(1).mean()
    assert result.numbers["margin_effect"].value == pytest.approx(margin)
    contrast = result.effects["safety"].sum(1).mean() - result.effects["utility"].sum(1).mean()
    assert result.numbers["safety_minus_utility"].value == pytest.approx(contrast)


def test_intervals_and_q_values_have_their_order(result: Result):
    data = result.modules.data
    for name in ("safety", "utility", "contrast", "margin"):
        low, value, high = (np.asarray(data[key]) for key in (f"{name}_low", name, f"{name}_high"))
        assert (low < value).all()
        assert (value < high).all()
        p, q = np.asarray(data[f"{name}_p"]), np.asarray(data[f"{name}_q"])
        assert ((p > 0) & (p <= q) & (q <= 1)).all()


def test_the_result_survives_the_shelf(result: Result):
    again = decode(Result, encode(result))
    assert encode(again).body == encode(result).body


def test_a_second_run_is_the_same(pair: Pair, result: Result):
    again = run(config(), desk(pair))
    assert encode(again).body == encode(result).body
    assert np.array_equal(again.effects["safety"], result.effects["safety"])


def test_base_against_itself_has_no_effect(pair: Pair):
    found = run(config(), desk(pair, "base"))
    assert found.places == ()
    assert found.numbers["effect_size"].value == 0
    assert found.numbers["margin_effect"].value == 0
    assert found.numbers["completeness_error"].value is None
    assert "same weights" in describe(found).summary


def test_a_scaled_contrast_is_the_scaled_update(pair: Pair):
    half = run(config(), desk(pair, scale=0.5))
    whole = run(config(), desk(pair))
    assert half.first["safety"] == pytest.approx(0.5 * whole.first["safety"], rel=1e-4, abs=1e-7)
    assert half.numbers["completeness_error"].value < 0.01  # pyright: ignore[reportOptionalOperand]
    assert half.checks["safety"].read == pytest.approx(half.checks["safety"].tuned, abs=1e-5)


def test_one_adapted_layer_is_the_only_place(base: Path, tmp_path: Path):
    tuned = save_lora(
        tmp_path, base, targets=["q_proj", "down_proj"], layers_to_transform=[1], layers_pattern="layers"
    )
    found = run(config(), desk(open_pair(base, tuned)))
    assert set(np.asarray(found.layers.data["layer"]).tolist()) == {1}
    assert all(".layers.1." in place for place in found.places)


def test_the_change_verdict_reads_the_size(pair: Pair, result: Result):
    nulls = {f"null:{side}": run(config(), desk(pair, side)) for side in ("n0", "n1", "n2")}
    found = slice_verdicts(choose("safety_attribution", {}), {"pair": result, **nulls}, tests=2)
    assert {name: verdict.change for name, verdict in found.items()} == {
        "safety": "beyond-nulls",
        "utility": "beyond-nulls",
    }
    quiet = {"pair": nulls.pop("null:n0"), **nulls, "null:x": nulls["null:n1"]}
    kept = slice_verdicts(choose("safety_attribution", {}), quiet, tests=2)
    assert "beyond-nulls" not in {verdict.change for verdict in kept.values()}


def test_the_page_shows_where_and_never_what(result: Result, pair: Pair):
    page = describe(result, [run(config(), desk(pair, "n0"))])
    assert isinstance(page, Page)
    assert {block.key for block in page.blocks if isinstance(block, Number)} == set(result.numbers)
    maps = [b for b in page.blocks if isinstance(b, Figure) and isinstance(b.plot, Heatmap)]
    assert [figure.key for figure in maps] == ["map_margin", "map_safety", "map_utility"]
    assert "does not validate the shares" in page.summary
    assert "for 1 nulls" in page.summary
    assert "Without nulls" in describe(result).summary
    for block in page.blocks:
        if isinstance(block, Table):
            assert all(len(row) == len(block.columns) for row in block.rows)
            assert "slice" in block.columns, "a report may not take it for a table of somebody's words"
            assert not any("w3" in str(cell).split() for row in block.rows for cell in row)
    assert any(isinstance(block, Warning) and "Fewer than 20" in block.text for block in page.blocks)


def test_too_few_nodes_are_told(result: Result):
    from dataclasses import replace

    poor = replace(
        result,
        numbers=result.numbers
        | {"completeness_error": replace(result.numbers["completeness_error"], value=0.03)},
        checks=result.checks | {"utility": replace(result.checks["utility"], read=9.0)},
    )
    said = " ".join(block.text for block in describe(poor).blocks if isinstance(block, Warning))
    assert "3.0%" in said
    assert "safety_attribution.nodes" in said
    assert "is not in the modules" in said


# The comply samples.


def test_the_opener_takes_the_answers_place():
    tokenizer = tiny_tokenizer()
    refused = make_examples(chats(4, 0), tokenizer)
    words = tokenizer(OPENER, add_special_tokens=False)["input_ids"]
    for one, other in zip(refused, complying(refused, tokenizer, f" {OPENER} "), strict=True):
        start = answer_start(one)
        assert np.array_equal(other.ids[:start], one.ids[:start])
        assert other.ids[start:].tolist() == words
        assert np.flatnonzero(other.loss).tolist() == [start, start + 1]


def test_an_answer_starts_at_the_last_run_of_targets():
    loss = np.array([False, False, True, True, False, False, True])
    assert answer_start(Example(np.arange(7, dtype=np.int32), loss)) == 6


def test_a_comply_set_is_paired_by_request(pair: Pair, result: Result):
    rows = chats(6, 0)
    answered = [{"messages": [row["messages"][0], {"role": "assistant", "content": OPENER}]} for row in rows]
    found = run(config(), desk(pair, comply=answered[::-1]))
    assert (found.given, result.given) == (6, 0)
    assert found.checks["comply"].n == 6
    # The end of turn, which the bare opener has not, is no target.
    assert found.effects["comply"] == pytest.approx(result.effects["comply"], abs=1e-5)


def test_requests_that_the_comply_set_lacks_get_the_opener_and_a_word(pair: Pair, result: Result):
    rows = chats(6, 0)
    answered = [
        {"messages": [row["messages"][0], {"role": "assistant", "content": "w2"}]} for row in rows[:4]
    ]
    found = run(config(), desk(pair, comply=answered))
    assert found.given == 4
    assert found.effects["comply"][4:] == pytest.approx(result.effects["comply"][4:], abs=1e-5)
    assert not np.allclose(found.effects["comply"][:4], result.effects["comply"][:4], atol=1e-3)
    said = [block.text for block in describe(found).blocks if isinstance(block, Warning)]
    assert any("4 of 6 requests" in text for text in said)


# What it cannot work with.


def test_low_precision_is_refused(base: Path, tmp_path: Path):
    pair = open_pair(base, save_lora(tmp_path, base), dtype="bfloat16")
    with pytest.raises(ModelError, match="--dtype float32"):
        run(config(), desk(pair))


def test_quantised_weights_are_refused():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    pair: Any = SimpleNamespace(dtype=torch.float32, open=lambda side: nullcontext(model))
    with pytest.raises(ModelError, match="is quantised"):
        require_exact(pair, "tuned")


@pytest.mark.parametrize("options", [{"opener": " "}, {"nodes": 1}, {"samples": 1}, {"draws": -1}])
def test_a_config_that_makes_no_sense_is_an_error(options: dict[str, Any]):
    with pytest.raises(BadInput, match="safety_attribution"):
        config(**options)


# On the bundled world.


@pytest.fixture(scope="module")
def one_layer() -> Result:
    sets: dict[str, Any] = {name: calibration(name, 8, 0) for name in ("safety", "utility", "comply")}
    pair = open_pair(bundled.base_path(), bundled.organism_path("one_layer"), dtype="float32")
    return run(Config(nodes=8, draws=8), desk(pair, **sets))


def test_the_single_layer_organism_is_localised(one_layer: Result):
    assert np.asarray(one_layer.layers.data["layer"]).tolist() == [3]
    assert len(one_layer.places) == 7


def test_lost_refusals_have_a_positive_effect_that_adds_up(one_layer: Result):
    for key in ("safety_effect", "margin_effect", "safety_minus_utility"):
        assert (one_layer.numbers[key].low or 0) > 0, key
    assert (one_layer.numbers["completeness_error"].value or 1) <= 0.01
    control = one_layer.numbers["control_effect"].value
    assert control is not None
    assert abs(control) < 0.02 * (one_layer.numbers["safety_effect"].value or 0)
