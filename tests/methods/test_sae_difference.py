"""sae_difference on planted changes: the planted directions are found again, and nothing is found where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dictionaries.desks import desk_of
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.page import Figure, Line, Page, Passage, Table, Warning
from finetrace.core.result import decode, encode
from finetrace.data.roles import TEMPLATE, TEXT
from finetrace.dictionaries.dictionary import Dictionary, told_of
from finetrace.dictionaries.findings import CONSTANT, CONSTANT_PART, FEW, IDENTICAL
from finetrace.dictionaries.study import DICTIONARY
from finetrace.dictionaries.study import asked as settings
from finetrace.engine import Step
from finetrace.methods.sae_difference import KEYS, Config
from finetrace.methods.sae_difference.describe import describe
from finetrace.methods.sae_difference.ranking import top_tokens
from finetrace.methods.sae_difference.result import Result
from finetrace.methods.sae_difference.run import run

D, PLANTED, LENGTH, TEXTS = 16, 10, 12, 240
CONFIG = Config(latents=24, k=1, batch=256, steps=500, shown=12, keep=True)


def directions() -> Tensor:
    return torch.linalg.qr(torch.randn(D, PLANTED, generator=torch.Generator().manual_seed(5)))[
        0
    ].T.contiguous()


def change(size: float, texts: int = TEXTS) -> Tensor:
    """[text, pos, d]: about one of the planted directions at a token, and a constant beside them; of text i, more of i's own."""
    g = torch.Generator().manual_seed(1)
    own = torch.rand(texts, LENGTH, PLANTED, generator=g) < 0.03
    own |= (torch.arange(texts) % PLANTED)[:, None, None].eq(torch.arange(PLANTED)) & (
        torch.rand(texts, LENGTH, 1, generator=g) < 0.6
    )
    codes = own * (1 + torch.rand(texts, LENGTH, PLANTED, generator=g))
    constant = torch.zeros(D)
    constant[0] = 0.5
    return size * (codes @ directions() + constant)


def desk(moved: Tensor, folder: Path, told: list[str] | None = None) -> Any:
    """A desk of texts that differ by `moved`; the first token's state is an outlier, the second is the template's. The head's
    token i is what planted direction i says."""
    texts = len(moved)
    g = torch.Generator().manual_seed(2)
    base = torch.randn(texts, LENGTH + 3, D, generator=g)
    tuned = base.clone()
    tuned[:, 2:-1] += moved
    tuned[:, :2] += 50.0
    ids = torch.randint(0, PLANTED, base.shape[:2], generator=g)
    role = torch.full(base.shape[:2], TEXT)
    role[:, 1] = TEMPLATE
    return desk_of(base, tuned, directions(), folder, ids=ids, role=role, told=told, first=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sae")


@pytest.fixture(scope="module")
def found(folder: Path) -> Result:
    return run(CONFIG, desk(change(1.0), folder))


@pytest.fixture(scope="module")
def null(folder: Path) -> Result:
    """A tenth of the change, and other directions."""
    noise = 0.1 * torch.randn(TEXTS, LENGTH, D, generator=torch.Generator().manual_seed(7))
    return run(replace(CONFIG, keep=False), desk(noise, folder / "null"))


def test_planted_directions_are_found(found: Result, folder: Path):
    assert told_of(folder / DICTIONARY)["reads"] == "difference"
    learnt = Dictionary.load(folder / DICTIONARY).directions()[0]
    cosine = (directions() @ torch.nn.functional.normalize(learnt, dim=1).T).amax(1)
    assert (cosine >= 0.9).float().mean() >= 0.9
    value = {key: estimate.value or 0.0 for key, estimate in found.numbers.items()}
    assert value["explained_share"] > 0.85
    assert value["latents_share"] > 0.8
    assert 0 < value["codes_per_token"] < 5
    assert found.fitted is not None
    assert found.fitted.latents == 24


def test_figures_are_of_held_out_texts_without_outliers(found: Result):
    """Changes of 50 at the first token and the template's would be 10,000 times the base's variance."""
    explained = found.numbers["explained_change"]
    square = float(change(1.0).square().sum(2).mean())
    assert explained.value == pytest.approx(square / D, rel=0.25)
    assert found.rows + found.held == TEXTS * LENGTH
    assert explained.n == found.held
    assert found.held == pytest.approx(0.25 * TEXTS * LENGTH, rel=0.4)
    assert sum(one["explained_change"].n for one in found.slices.values()) == found.held
    assert explained.low is not None
    assert explained.low < (explained.value or 0) < (explained.high or 0)


def test_a_latent_says_its_token_where_it_fires(found: Result):
    data = found.words.data
    first = {
        int(data["latent"][i]): int(data["token_id"][i])
        for i in range(len(found.words))
        if (data["head"][i], data["sign"][i], data["rank"][i]) == ("base", "promoted", 1)
    }
    assert CONSTANT_PART in first
    assert len({token for latent, token in first.items() if latent != CONSTANT_PART}) >= 0.9 * PLANTED
    top = [p for p in found.passages if p.bin == "top"]
    assert all(p.value == pytest.approx(max(v or 0.0 for v in p.values)) for p in top)
    hits = [(p.row % PLANTED) + 100 == first[p.latent] for p in top if p.latent in first]
    assert np.mean(hits) > 0.4, "texts of a direction's own are a tenth of all"


def test_a_null_of_noise_is_smaller_and_explains_little(found: Result, null: Result):
    ours, theirs = (one.numbers["explained_change"].value or 0.0 for one in (found, null))
    assert 0 < theirs < 0.05 * ours
    assert (null.numbers["explained_share"].value or 0.0) < 0.6
    page = describe(found, [null])
    assert isinstance(page, Page)
    assert "for 1 nulls" in page.summary
    assert "Without nulls" in describe(found).summary
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    assert {"latents", "tokens", "null_latents", "frequencies", "slices", "training"} <= tables.keys()
    assert all(len(row) == len(table.columns) for table in tables.values() for row in table.rows)
    worded = {
        c
        for t in tables.values()
        for row in t.rows
        for c, v in zip(t.columns, row, strict=True)
        if isinstance(v, str)
    }
    assert worded <= {"slice", "token", "tokens_up"}, (
        "a report that hides words leaves all other cells readable"
    )
    assert page.summary.count("“") == 1
    spread = next(block for block in page.blocks if isinstance(block, Figure) and block.key == "spread")
    assert isinstance(spread.plot, Line)
    assert [series.name for series in spread.plot.series] == ["pair", "1 nulls"]
    assert all(series.y[-1] == pytest.approx(1) for series in spread.plot.series)
    titles = [
        block.title for block in page.blocks if isinstance(block, Passage) and block.slice in ("even", "odd")
    ]
    assert titles
    places = [(title.split(",")[0], title.rsplit("text ", 1)[1].split()[0]) for title in titles]
    assert len(set(places)) == len(places), "a latent's text is shown once"


def test_the_result_survives_the_shelf_and_is_the_same_again(found: Result, folder: Path):
    again = run(CONFIG, desk(change(1.0), folder / "again"))
    assert encode(again).body == encode(found).body
    assert np.array_equal(again.peaks, found.peaks)
    assert encode(decode(Result, encode(found))).body == encode(found).body


def test_changes_that_do_not_fit_in_memory_give_the_same_kind_of_result(folder: Path, found: Result):
    config = replace(CONFIG, memory=1, keep=False)
    big = desk(change(1.0, 3 * TEXTS), folder / "big")
    streamed = run(replace(config, steps=300), big)
    assert streamed.rows > 2.5 * found.rows
    assert (streamed.numbers["explained_share"].value or 0.0) > 0.85


def test_equal_models_have_zeros_and_no_dictionary(folder: Path):
    same = desk(torch.zeros(30, LENGTH, D), folder / "same")
    same.steps = _echoed(same.steps)
    result = run(Config(), same)
    assert result.reason == IDENTICAL
    assert result.numbers["explained_change"].value == 0
    assert result.numbers["explained_share"].value is None
    assert result.fitted is None
    assert top_tokens(result, "even") == ()
    assert "the same" in describe(result).summary
    encode(result)


def _echoed(steps: Any) -> Any:
    def same(layers: Sequence[float], *, shuffled: int | None = None) -> Iterator[Step]:
        for step in steps(layers, shuffled=shuffled):
            yield replace(step, hidden=lambda layer, step=step: (step.hidden(layer)[0],) * 2)

    return same


def test_a_constant_change_is_one_direction(folder: Path):
    moved = directions()[3].expand(30, LENGTH, D)
    result = run(Config(), desk(moved, folder / "constant"))
    assert result.reason == CONSTANT
    assert result.numbers["explained_share"].value == pytest.approx(1.0, abs=1e-4)
    assert result.numbers["latents_share"].value is None or result.fitted is None
    assert top_tokens(result, "even", 1) == (103,)
    assert "alike at every token" in describe(result).summary


def test_too_few_tokens_are_told_and_give_no_figures(folder: Path):
    told: list[str] = []
    result = run(Config(), desk(change(1.0, 1), folder / "few", told))
    assert result.reason == FEW
    assert any("With fewer tokens than dimensions any direction fits" in line for line in told)
    assert all(estimate.value is None for estimate in result.numbers.values())
    page = describe(result)
    assert "Too few tokens" in page.summary
    assert any(isinstance(block, Warning) and "no dictionary" in block.text for block in page.blocks)
    encode(result)


def test_the_benchmark_is_told_the_words_that_moved_most(found: Result):
    assert len(top_tokens(found, "even", 5)) == 5
    assert set(top_tokens(found, "even", PLANTED)) == set(range(100, 100 + PLANTED))


def test_what_is_asked_for_is_cut_to_the_tokens_there_are():
    small = settings(Config(), 100, 32, 0)
    assert (small.latents, small.k, small.batch, small.steps) == (64, 8, 64, 200)
    assert settings(Config(), 40, 32, 0).latents == 40
    large = settings(Config(), 10**8, 2048, 0)
    assert (large.latents, large.k, large.batch, large.steps) == (4096, 16, 1024, 20000)


@pytest.mark.parametrize(
    "wrong",
    [{"layer": 2.0}, {"held": 1.0}, {"k": 0}, {"latents": 1}, {"steps": 0}, {"memory": 0}, {"l1": -1.0}],
)
def test_nonsense_is_refused_by_name(wrong: dict[str, Any]):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Config(**wrong)


def test_keys_are_those_of_the_card(found: Result):
    assert tuple(found.numbers) == tuple(key for key, _ in KEYS)
