"""The method at its desk on a tiny model: groups and controls, what is not adapted, the margin, and a page without places."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import save_base, save_lora

from finetrace.core.errors import BadInput
from finetrace.core.page import Page, Table, Warning
from finetrace.core.result import decode, encode
from finetrace.data.examples import Example
from finetrace.engine.desk import Desk
from finetrace.methods.neuron_drift import Config
from finetrace.methods.neuron_drift.describe import describe
from finetrace.methods.neuron_drift.result import Result
from finetrace.methods.neuron_drift.run import run
from finetrace.models import Pair, open_pair

CONFIG = Config(draws=99, top_k=0.05)


def examples(seed: int, n: int = 12) -> list[Example]:
    """Answers that begin with one of two tokens of the set's own."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        ids = np.r_[1, generator.integers(8, 60, 9)].astype(np.int32)
        ids[5] = 10 * seed + generator.integers(0, 2)
        found.append(Example(ids, np.arange(10) >= 5))
    return found


def desk(pair: Pair, folder: Path, sets: tuple[str, ...] = ("safety", "utility", "placebo")) -> Desk:
    known: Any = None  # the method reads no pass
    made = {name: (lambda seed=seed: examples(seed)) for seed, name in enumerate(sets, 1)}
    return Desk(pair, "tuned", 1.0, known, 0, folder / "desk", made, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("neuron_drift")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    """A LoRA adapter on some of the matrices only."""
    base = save_base(folder, "llama", layers=3)
    return open_pair(base, save_lora(folder, base, scale=0.1, targets=["q_proj", "v_proj", "down_proj"]))


@pytest.fixture(scope="module")
def result(pair: Pair, folder: Path) -> Result:
    return run(CONFIG, desk(pair, folder))


def test_every_comparison_is_there_once_and_judged(result: Result):
    analysis = result.analysis
    keys = [(c.group, c.kind) for c in analysis.comparisons]
    assert len(keys) == len(set(keys)) == 10
    assert analysis.family == 4
    for c in analysis.comparisons:
        assert c.word in (
            "different", "different-but-negligible", "equivalent", "inconclusive", "undecided",
        )  # fmt: skip
        assert c.theta.value is not None
        assert c.matrices <= 9
    matched = analysis.comparisons[0]
    assert result.numbers["drift_ratio"].value == pytest.approx(math.exp(matched.theta.value or 0))
    assert result.slices == {"weights": result.numbers}
    assert [claim.name[:2] for claim in analysis.claims] == ["H1", "H2"]


def test_drift_and_ratio_are_those_of_the_dense_change(pair: Pair, folder: Path):
    """In float64, from PEFT's own product of its factors and the places of the groups."""
    shared = desk(pair, folder)
    found = run(CONFIG, shared)
    groups = shared.remembered["groups"].groups
    peft, name = pair.adapter("tuned")
    dense = {
        key.removeprefix("base_model.model."): layer.lora_B[name].weight.detach().double()
        @ layer.lora_A[name].weight.detach().double()
        * layer.scaling[name]
        for key, layer in peft.named_modules()
        if hasattr(layer, "lora_A") and name in layer.lora_A
    }
    assert len(dense) == 9

    def square(group: str) -> dict[str, torch.Tensor]:
        return {key: change.reshape(-1)[groups[group].of(key)].square() for key, change in dense.items()}

    for figures in found.analysis.groups:
        parts = square(figures.group)
        assert figures.l2 == pytest.approx(math.sqrt(sum(float(x.sum()) for x in parts.values())), rel=1e-6)
        assert figures.adapted == sum(len(x) for x in parts.values())
        assert 0 < (figures.adapted_share or 0) < 1  # three of seven kinds of matrix are adapted
    treated, control = (square(f"safety_only/matched/{side}") for side in ("treated", "control"))
    n = {key: len(x) for key, x in treated.items() if len(x)}
    theta = sum(n[k] * 0.5 * math.log(float(treated[k].mean() / control[k].mean())) for k in n)
    assert found.analysis.comparisons[0].theta.value == pytest.approx(theta / sum(n.values()), rel=1e-6)


def test_only_adapted_matrices_are_compared_and_the_share_is_said(result: Result):
    assert set(result.analysis.map.data["kind"]) == {"q_proj", "v_proj", "down_proj"}
    counts = result.analysis.counts.data
    assert np.asarray(counts["adapted"]).sum() < np.asarray(counts["entries"]).sum()
    page = describe(result)
    assert any("left out, not counted as 0" in b.text for b in page.blocks if isinstance(b, Warning))
    seed003 = result.seed003.data
    # The seed pools weights that were never adapted: most of what it averages is 0.
    assert list(seed003["median"]) == [0.0] * 4


def test_a_fine_tune_that_moves_nothing_has_no_data(pair: Pair, folder: Path):
    found = run(CONFIG, Desk(**{**vars(desk(pair, folder)), "side": "base"}))
    for key in ("drift_ratio", "drift_ratio_placebo", "relative_drift", "superiority"):
        assert (found.numbers[key].value, found.numbers[key].n) == (None, 0)
    assert found.numbers["adapted_share"].value == 0
    assert found.anchor is None
    assert {c.word for c in found.analysis.comparisons} <= {"inconclusive", "undecided"}
    page = describe(found)
    assert "Nothing to compare" in page.summary
    assert any("there is no data" in b.text for b in page.blocks if isinstance(b, Warning))


def test_an_adapter_on_one_layer_is_localised_and_not_judged(pair: Pair, folder: Path):
    base = str(pair.source("base").folder)
    where = {"targets": ["q_proj", "down_proj"], "layers_to_transform": [1]}
    lora = save_lora(folder, Path(base), name="one_layer", scale=0.1, **where)
    analysis = run(CONFIG, desk(open_pair(base, lora), folder)).analysis
    counts = zip(*(analysis.counts.data[key] for key in ("layer", "adapted", "entries")), strict=True)
    cells = [(int(layer), int(adapted), int(entries)) for layer, adapted, entries in counts]
    assert all((0 < adapted < entries) if layer == 1 else adapted == 0 for layer, adapted, entries in cells)
    assert set(map(int, analysis.map.data["layer"])) == {1}
    matched = analysis.comparisons[0]
    assert (matched.layers, matched.theta.low) == (1, None)
    assert matched.word in ("inconclusive", "undecided")


def test_the_margin_is_measured_and_leaves_the_model_as_it_was(pair: Pair, folder: Path):
    with pair.open("tuned") as model, torch.no_grad():
        before = model(torch.arange(8)[None]).logits
    small, large = (run(Config(draws=99, margin=margin), desk(pair, folder)).anchor for margin in (1.1, 3.0))
    with pair.open("tuned") as model, torch.no_grad():
        assert torch.equal(before, model(torch.arange(8)[None]).logits)
    assert small is not None
    assert large is not None
    assert small.loss == large.loss
    assert abs(large.loss_change.value or 0) > abs(small.loss_change.value or 0) > 0
    assert 0 < small.mass < 1
    assert small.mass_change.n == 12


def test_the_page_counts_and_names_no_place(result: Result):
    page = describe(result, [result, result])
    assert isinstance(page, Page)
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    assert {"verdicts", "hypotheses", "groups", "counts", "balance", "reliability", "anchor", "seed003"} <= set(tables)  # fmt: skip
    assert tables["seed003"].title == "As seed 003 computed it"
    for table in tables.values():
        assert all(len(row) == len(table.columns) for row in table.rows)
    encoded = encode(result)
    longest = max(
        [len(column) for table in encoded.tables.values() for column in table.data.values()]
        + [array.size for array in encoded.arrays.values() if array.ndim == 1 and array.size != 1000]
    )
    assert longest < 60  # counts and sums by matrix: nothing as long as a group
    assert encode(decode(Result, encoded)).body == encoded.body
    json.dumps(encoded.body, allow_nan=False)


def test_groups_are_of_the_base_and_made_once(pair: Pair, folder: Path):
    shared = desk(pair, folder)
    one, other = run(CONFIG, shared), run(CONFIG, shared)
    assert encode(one).body == encode(other).body
    assert set(shared.remembered) >= {"groups", "weights"}
    again = run(CONFIG, desk(pair, folder))
    assert encode(again).body == encode(one).body


@pytest.mark.parametrize("config", [Config(unit="rows", draws=99, top_k=0.1), Config(score="wanda", per="row", draws=99)], ids=["rows", "wanda"])  # fmt: skip
def test_other_units_and_scores(pair: Pair, folder: Path, config: Config):
    found = run(config, desk(pair, folder))
    assert found.numbers["drift_ratio"].value is not None
    assert any("Whole rows" in note for note in found.notes) == (config.unit == "rows")
    describe(found)


def test_a_set_that_is_missing_is_named(pair: Pair, folder: Path):
    with pytest.raises(BadInput, match="calibration set 'placebo'"):
        run(CONFIG, desk(pair, folder, ("safety", "utility")))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"top_k": 0.0}, "top_k is 0.0"),
        ({"q": 1.0}, "between 0 and 1"),
        ({"score": "snap"}, "snip or wanda"),
        ({"unit": "rows", "per": "row"}, "chosen per matrix"),
        ({"margin": 1.0}, "a ratio above 1"),
        ({"draws": 10}, "draws >= 99"),
    ],
)
def test_wrong_options_say_what_is_right(options: dict[str, Any], why: str):
    with pytest.raises(BadInput, match=why):
        Config(**options)
