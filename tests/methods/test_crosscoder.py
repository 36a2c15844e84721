"""crosscoder on planted states: what only the tuned model has is tagged and confirmed, and equal models have nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.dictionaries.desks import desk_of
from tests.dictionaries.planted import FEATURES, D, Planted, planted
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.page import Figure, Number, Page, Passage, Table, Warning
from finetrace.core.result import decode, encode
from finetrace.dictionaries.dictionary import Dictionary, told_of
from finetrace.dictionaries.findings import FEW, IDENTICAL
from finetrace.dictionaries.reading import Tokens
from finetrace.dictionaries.study import DICTIONARY
from finetrace.methods.crosscoder import KEYS, Config
from finetrace.methods.crosscoder.describe import describe
from finetrace.methods.crosscoder.figures import Sums
from finetrace.methods.crosscoder.ranking import top_tokens
from finetrace.methods.crosscoder.result import Result
from finetrace.methods.crosscoder.run import run

LENGTH, VOCAB = 18, FEATURES
CONFIG = Config(latents=96, k=4, batch=512, steps=500, lr=0.005, shown=12, keep=True)


def desk(states: Tensor, truth: Planted, folder: Path, told: list[str] | None = None) -> Any:
    """A desk whose texts have these states, [row, model, d]: a first token of none of them, then LENGTH tokens each. The
    head's token i is what feature i says."""
    texts = len(states) // LENGTH
    body = states[: texts * LENGTH].reshape(texts, LENGTH, 2, D)
    # The first token's state is an outlier, the last has no next token.
    held = torch.cat([torch.full((texts, 1, 2, D), 100.0), body, body[:, :1]], 1)
    ids = torch.randint(0, VOCAB, held.shape[:2], generator=torch.Generator().manual_seed(1))
    return desk_of(held[:, :, 0], held[:, :, 1], truth.directions, folder, ids=ids, told=told)


@pytest.fixture(scope="module")
def truth() -> Planted:
    return planted(2, 7200, rarer=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crosscoder")


@pytest.fixture(scope="module")
def found(truth: Planted, folder: Path) -> Result:
    return run(CONFIG, desk(truth.rows, truth, folder))


@pytest.fixture(scope="module")
def null(truth: Planted, folder: Path) -> Result:
    """A harmless fine-tune: the base's states a little larger."""
    rows = torch.stack([truth.rows[:, 0], 1.05 * truth.rows[:, 0]], 1)
    made = desk(rows, truth, folder / "null")
    return run(Config(latents=96, k=4, batch=512, steps=60, lr=0.005), made)


def named(result: Result, latent: int) -> list[int]:
    """What the latent promotes most, through the base's head."""
    columns = (result.words.data[name] for name in ("token_id", "latent", "head", "sign", "rank"))
    return [
        int(token)
        for token, of, head, sign, rank in zip(*columns, strict=True)
        if (of, head, sign, rank) == (latent, "base", "promoted", 1)
    ]


def values(result: Result) -> dict[str, float]:
    return {key: one.value for key, one in result.numbers.items() if one.value is not None}


def blocks(page: Page, kind: type) -> dict[str, Any]:
    found: list[Any] = [block for block in page.blocks if isinstance(block, kind)]
    return {block.key: block for block in found}


def test_what_only_the_tuned_model_has_is_confirmed_and_named(found: Result, truth: Planted):
    wanted = {i for i, owner in enumerate(truth.truth) if owner == "tuned-only"}
    confirmed = np.flatnonzero(np.asarray(found.latents.data["confirmed"]))
    said = {token for latent in confirmed for token in named(found, int(latent))}
    assert said <= wanted
    assert len(said) >= 0.6 * len(wanted)
    assert found.tags["confirmed"] == len(confirmed) >= 6
    assert found.tags["shared"] > 40
    assert set(confirmed) <= set(found.shown.tolist()), "the ones worth showing come first"
    assert len(wanted & set(top_tokens(found, "", 12))) >= 8


def test_figures_are_of_what_is_there(found: Result, truth: Planted):
    figures = values(found)
    change = truth.rows[:, 1] - truth.rows[:, 0]
    base = truth.rows[:, 0] - truth.rows[:, 0].mean(0)
    whole = float(change.square().sum() / base.square().sum())
    assert whole * 0.8 < figures["explained_change"] < whole * 1.2
    assert figures["explained_share"] > 0.9
    assert figures["latents_share"] > 0.9
    assert figures["base_share"] > 0.85
    assert 0.01 < figures["tuned_only_share"] < 0.2
    assert figures["codes_per_token"] == pytest.approx(4, abs=1)
    assert list(found.numbers) == [key for key, _ in KEYS]
    for key, one in found.numbers.items():
        assert one.n == found.held == sum(found.slices[name][key].n for name in ("even", "odd"))
        assert one.low is not None
        assert one.high is not None
        assert one.low <= figures[key] <= one.high
        assert one.replicates is not None
    assert found.rows + found.held == 7200


def test_more_of_the_same_is_shared(null: Result, found: Result):
    """A base whose features are all a little stronger has nothing of its own."""
    assert null.tags["confirmed"] == 0
    assert null.numbers["tuned_only_share"].value == 0
    assert 0 < values(null)["explained_change"] < 0.1 * values(found)["explained_change"]


def test_equal_models_are_not_trained_on(truth: Planted, folder: Path):
    rows = torch.stack([truth.rows[:1800, 0]] * 2, 1)
    for some in (rows, rows * (1 + 1e-8 * torch.randn(rows.shape, dtype=torch.float64)).float()):
        same = run(CONFIG, desk(some, truth, folder / "same"))
        assert same.reason == IDENTICAL
        assert same.numbers["explained_change"].value == 0
        assert {one.value for key, one in same.numbers.items() if key != "explained_change"} == {None}
        assert same.fitted is None
        assert not same.passages
        assert not same.tags
        page = describe(same, [same])
        assert "all that one holds is shared" in page.summary
        encode(same)


def test_fewer_tokens_than_dimensions_are_said_and_not_trained_on(truth: Planted, folder: Path):
    told: list[str] = []
    few = run(CONFIG, desk(truth.rows[: 2 * LENGTH], truth, folder / "few", told))
    assert few.reason == FEW
    assert "18 tokens of 32 dimensions" in told[0]
    assert all(one.value is None for one in few.numbers.values())
    assert any(
        "fewer tokens than dimensions" in b.text for b in describe(few).blocks if isinstance(b, Warning)
    )


def test_a_page_has_its_numbers_beside_the_nulls_and_hides_nothing_by_itself(found: Result, null: Result):
    page = describe(found, [null])
    numbers, tables, figures = (blocks(page, kind) for kind in (Number, Table, Figure))
    assert list(numbers) == [key for key, _ in KEYS]
    assert {"norms", "scaling", "learning"} == figures.keys()
    tags = tables["tags"]
    assert [row[0] for row in tags.rows] == [0, 1]
    assert tags.rows[0][tags.columns.index("confirmed")] == found.tags["confirmed"]
    latents = tables["latents"]
    assert len(latents.rows) == len(found.shown)
    assert all(len(row) == len(latents.columns) for row in latents.rows)
    nu = [
        row[latents.columns.index("nu_error_high")]
        for row in latents.rows
        if row[latents.columns.index("confirmed")]
    ]
    assert nu
    assert max(nu) < 0.5
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
    words = tables["tokens"]
    beside = [row[words.columns.index("nulls")] for row in words.rows if row[1] == 1]
    assert None not in beside
    passages = [block for block in page.blocks if isinstance(block, Passage)]
    assert {block.slice for block in passages} == {"even", "odd"}, "a report hides by slice"
    assert "for 1 nulls" in page.summary
    assert "Without nulls" in describe(found).summary


def test_a_result_and_a_kept_dictionary_come_back(found: Result, folder: Path):
    encoded = encode(found)
    assert encode(decode(Result, encoded)).body == encoded.body
    assert told_of(folder / DICTIONARY)["reads"] == "both"
    kept = Dictionary.load(folder / DICTIONARY)
    assert (kept.models, kept.latents) == (2, 96)
    assert found.fitted is not None
    assert int((kept.owner != 0).sum()) == int(np.count_nonzero(found.latents.data["owner"])) == 10


def test_sums_are_those_of_one_token_at_a_time():
    g = torch.Generator().manual_seed(3)
    d, latents, n = 5, 7, 40
    encoder, decoder = torch.randn(2, d, latents, generator=g), torch.randn(2, latents, d, generator=g)
    dictionary = Dictionary(
        encoder, torch.randn(latents, generator=g), decoder, torch.randn(2, d, generator=g),
        torch.randn(2, d, generator=g), torch.tensor([0.5, 2.0]), torch.zeros(latents, dtype=torch.int8), 0.3,
        "batch_topk", "crosscoder",
    )  # fmt: skip
    base, tuned = torch.randn(n, d, generator=g), torch.randn(n, d, generator=g)
    mean, own = torch.randn(2, d, generator=g).double(), np.arange(latents) % 3 == 0
    text = torch.arange(n) % 4
    keys = np.arange(4, dtype=np.uint64)
    sums = Sums(dictionary, mean, own)
    sums.see(Tokens(base, tuned, text, torch.arange(n), keys, np.zeros(4, np.int64), np.arange(4)))
    total = np.zeros((len(KEYS), 2))
    for b, t in zip(base.double(), tuned.double(), strict=True):
        codes = dictionary.codes(torch.stack([b, t])[None].float())
        rb, rt = dictionary.decode(codes)[0].double()
        c, r = t - b, rt - rb
        missed = float((c - r).square().sum())
        energy = [float(codes[0, j] * decoder[1, j].norm() / 2.0) ** 2 for j in range(latents)]
        spread = [float((x - m).square().sum()) for x, m in ((b, mean[0]), (t, mean[1]))]
        rest = float((c - (mean[1] - mean[0])).square().sum())
        total += [
            [max(0.0, float(c @ r)) ** 2 / float(r @ r), spread[0]],
            [float(c @ c) - missed, float(c @ c)],
            [rest - missed, rest],
            [sum(e for e, mine in zip(energy, own, strict=True) if mine), sum(energy)],
            [spread[0] - float((b - rb).square().sum()), spread[0]],
            [spread[1] - float((t - rt).square().sum()), spread[1]],
            [float((codes > 0).sum()), 1.0],
        ]
    found = sums.estimates(0)
    for (key, _), (above, below) in zip(KEYS, total, strict=True):
        assert found[key].value == pytest.approx(above / below, rel=1e-5), key
        assert (found[key].n, found[key].clusters) == (n, 4)


@pytest.mark.parametrize(
    "options", [{"layer": 2}, {"held": 0}, {"kind": "topk"}, {"latents": 1}, {"exclusive": 1}]
)
def test_a_config_that_makes_no_sense_is_an_error(options: dict[str, Any]):
    with pytest.raises(BadInput, match="crosscoder needs"):
        Config(**options)
