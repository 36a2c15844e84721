"""feature_rates in an audit of a tiny pair, and on planted codes: which features changed, and what has to be told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.worlds import rows, world

import finetrace as ft
from finetrace.core.errors import BadInput, ConfigErrors
from finetrace.core.estimate import Estimate
from finetrace.core.page import Number, Table, Warning
from finetrace.core.result import Columns, decode, encode
from finetrace.data.roles import ROLES, TEMPLATE
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.formats import Opened, Origin
from finetrace.dictionaries.reading import Tokens
from finetrace.engine import Step
from finetrace.methods.feature_rates import KEYS, Config
from finetrace.methods.feature_rates.describe import changed, describe, largest
from finetrace.methods.feature_rates.result import Result
from finetrace.methods.feature_rates.run import Job, _layer, _open, pick
from finetrace.methods.feature_rates.sums import Sums

D, FEATURES = 32, 48


def sae(threshold: float = 0.5) -> Dictionary:
    """Random directions: it reads a tiny random model as badly as any."""
    rows = torch.randn(1, FEATURES, D, generator=torch.Generator().manual_seed(0))
    decoder = rows / rows.norm(dim=2, keepdim=True)
    return Dictionary(
        encoder=decoder.transpose(1, 2).contiguous(),
        encoder_bias=torch.zeros(FEATURES),
        decoder=decoder,
        decoder_bias=torch.zeros(1, D),
        mean=torch.zeros(1, D),
        scale=torch.ones(1),
        owner=torch.zeros(FEATURES, dtype=torch.int8),
        threshold=threshold,
        kind="batch_topk",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rates")


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Path, Path, list[Path]]:
    sae().save(folder / "sae.safetensors")
    return world(folder, nulls=3)


@pytest.fixture(scope="module")
def found(folder: Path, pair: tuple[Path, Path, list[Path]]) -> Any:
    base, tuned, nulls = pair
    return ft.audit(
        str(base), str(tuned), data=rows(24), methods=["feature_rates"], nulls=[str(null) for null in nulls],
        dose=False, out=folder / "out", options={"feature_rates": {"sae": str(folder / "sae.safetensors"), "layer": 1}},
    )  # fmt: skip


def test_a_large_change_has_more_turnover_than_the_nulls(found: Any):
    results = found.results["feature_rates"]
    values = {label: result.numbers["turnover"].value for label, result in results.items()}
    assert values["self"] == 0
    assert all(values["pair"] > 3 * values[f"null:null_{i}"] > 0 for i in range(3))
    assert {verdict.change for verdict in found["feature_rates"].verdicts.values()} == {"beyond-nulls"}
    assert set(results["pair"].numbers) == set(dict(KEYS))
    share = results["pair"].numbers["changed_share"]
    assert share.n == len(results["pair"].features)
    assert share.value == pytest.approx(float(changed(results["pair"]).mean()))
    assert not any(changed(results[label]).any() for label in ("self", *(f"null:null_{i}" for i in range(3))))


def test_the_figures_are_plain_counts(found: Any):
    """Rates of all features add up to features a token; the firings of one model alone are in the differences' bounds."""
    result = found.results["feature_rates"]["pair"]
    data = result.features.data
    for side in ("base", "tuned"):
        assert np.asarray(data[side]).sum() == pytest.approx(result.numbers[f"codes_{side}"].value)
    assert np.asarray(data["tuned"]) - np.asarray(data["base"]) == pytest.approx(
        np.asarray(data["difference"])
    )
    assert sum(one["turnover"].n for one in result.slices.values()) == result.tokens
    assert (np.asarray(data["low"]) <= np.asarray(data["difference"]) + 1e-12).all()


def test_the_page_puts_the_same_feature_of_the_nulls_beside(found: Any):
    results = found.results["feature_rates"]
    result, nulls = results["pair"], [results[f"null:null_{i}"] for i in range(3)]
    theirs = largest(result, nulls)
    assert theirs is not None
    one = int(result.shown[0])
    at = np.asarray(result.features.data["feature"]).tolist().index(one)
    wanted = 0.0
    for null in nulls:
        ids = np.asarray(null.features.data["feature"]).tolist()
        if one in ids:
            wanted = max(wanted, abs(float(null.features.data["difference"][ids.index(one)])))
    assert theirs[at] == wanted
    page = describe(result, nulls)
    features = next(block for block in page.blocks if isinstance(block, Table) and block.key == "features")
    told = dict(zip(features.columns, features.rows[0], strict=True))
    data = result.features.data
    assert (told["feature"], told["nulls"]) == (one, wanted)
    assert [told[name] for name in ("rate_base", "rate_tuned", "difference", "low", "q")] == [
        float(data[name][at]) for name in ("base", "tuned", "difference", "low", "q")
    ]
    assert {block.key for block in page.blocks if isinstance(block, Number)} == set(dict(KEYS))
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    assert {"features", "tokens", "nulls", "slices"} == tables.keys()
    assert [row[0] for row in tables["features"].rows] == result.shown.tolist()
    assert any(
        isinstance(block, Warning) and "trained on another model" in block.text for block in page.blocks
    )
    assert "Without nulls" in describe(result).summary
    assert len(result.passages) > 0
    for passage in result.passages:
        more = float(
            result.features.data["difference"][
                np.asarray(result.features.data["feature"]) == passage.feature
            ][0]
        )
        assert passage.side == ("tuned" if more > 0 else "base")
        assert max(v or 0.0 for v in passage.values) == pytest.approx(passage.value)


def test_the_result_survives_the_shelf(found: Any):
    result = found.results["feature_rates"]["pair"]
    assert encode(decode(Result, encode(result))).body == encode(result).body


def test_without_an_sae_nothing_loads(pair: tuple[Path, Path, list[Path]], folder: Path):
    with pytest.raises(ConfigErrors, match=r"needs a pretrained SAE of the base.*feature_rates\.sae=FOLDER"):
        ft.audit(str(pair[0]), str(pair[1]), data=rows(6), methods=["feature_rates"], out=folder / "none")


def test_an_sae_that_cannot_read_the_pair_is_named(pair: tuple[Path, Path, list[Path]], folder: Path):
    def audit(**options: Any) -> None:
        ft.audit(
            str(pair[0]), str(pair[1]), data=rows(6), methods=["feature_rates"], out=folder / "wrong", dose=False,
            options={"feature_rates": {"sae": str(folder / "sae.safetensors"), **options}},
        )  # fmt: skip

    with pytest.raises(BadInput, match="does not say which layer it reads"):
        audit()
    with pytest.raises(BadInput, match="no layer 7"):
        audit(layer=7)


def test_an_sae_of_another_layer_or_model_is_refused():
    def at(
        layer: int | None, asked: int | float | None = None, hook: str | None = "blocks.1.hook_resid_post"
    ) -> int:
        origin = Origin("saelens", "somewhere", hook=hook, model="tiny", layer=layer)
        return _layer(Config(sae="somewhere", layer=asked), Opened(sae(), origin), 2)

    assert [at(1), at(1, 1), at(1, 1.0), at(1, -1), at(None, 0)] == [1, 1, 1, 1, 0]
    with pytest.raises(
        BadInput, match=r"layer is 0, and somewhere was trained on the output of block 1 \(blocks.1"
    ):
        at(1, 0)
    with pytest.raises(BadInput, match=r"output of block 9.*has blocks 0 to 1: it is of another model, tiny"):
        at(9)
    with pytest.raises(BadInput, match=r"which layer it reads \(blocks.1.hook_mlp_out\)"):
        at(None, hook="blocks.1.hook_mlp_out")


def test_a_crosscoder_is_refused(folder: Path):
    desk: Any = SimpleNamespace(subject=SimpleNamespace(d_model=D), pair=SimpleNamespace(device="cpu"))
    one = sae()
    both = replace(
        one, encoder=one.encoder.repeat(2, 1, 1), decoder=one.decoder.repeat(2, 1, 1), decoder_bias=torch.zeros(2, D),
        mean=torch.zeros(2, D), scale=torch.ones(2),
    )  # fmt: skip
    both.save(folder / "crosscoder.safetensors")
    with pytest.raises(BadInput, match="a crosscoder of two models: it takes an SAE of one"):
        _open(Config(sae=str(folder / "crosscoder.safetensors")), desk)


def test_a_dictionary_of_changes_is_refused(folder: Path):
    desk: Any = SimpleNamespace(subject=SimpleNamespace(d_model=D), pair=SimpleNamespace(device="cpu"))
    sae().save(folder / "changes.safetensors", {"reads": "difference", "layer": 1})
    with pytest.raises(BadInput, match="was trained on tuned - base"):
        _open(Config(sae=str(folder / "changes.safetensors")), desk)
    sae().save(folder / "states.safetensors", {"reads": "base", "layer": 1})
    opened = _open(Config(sae=str(folder / "states.safetensors")), desk)
    assert (opened.origin.reads, _layer(Config(sae="x"), opened, 2)) == ("base", 1)


def test_first_tokens_and_the_template_do_not_count():
    position = torch.arange(6).expand(2, 6)
    role = torch.full((2, 6), ROLES.index("text"), dtype=torch.int8)
    role[:, 2] = TEMPLATE
    states = torch.randn(2, 6, D, generator=torch.Generator().manual_seed(0))
    step = Step(
        row=torch.arange(2), key=np.arange(2, dtype=np.uint64), slice=torch.zeros(2, dtype=torch.long), ids=position,
        keep=position < 5, role=role, position=position, next_id=position, hidden=lambda layer: (states, states),
    )  # fmt: skip

    def counted(**options: Any) -> list[int]:
        desk: Any = None
        opened = Opened(sae(), Origin("finetrace", "here"))
        return Job(Config(sae="here", **options), desk, opened, 1).counted(step).position.tolist()

    assert counted() == [1, 3, 4] * 2
    assert counted(template=True) == [1, 2, 3, 4] * 2
    assert counted(skip=2) == [3, 4] * 2


def test_turnover_is_what_one_model_has_alone():
    """Two features, two tokens: the base has both at the first, the tuned one of them there and one at the second."""
    axes = torch.eye(D)[:2]
    some = Dictionary(
        encoder=axes.T[None].contiguous(), encoder_bias=torch.zeros(2), decoder=axes[None].contiguous(),
        decoder_bias=torch.zeros(1, D), mean=torch.zeros(1, D), scale=torch.ones(1), owner=torch.zeros(2, dtype=torch.int8),
        threshold=0.0, kind="batch_topk",
    )  # fmt: skip
    base, tuned = torch.zeros(2, D), torch.zeros(2, D)
    base[0, :2] = 1.0
    tuned[0, 0], tuned[1, 1], tuned[1, 5] = 2.0, 1.0, 1.0
    sums = Sums(some)
    sums.see(
        Tokens(
            base,
            tuned,
            text=torch.tensor([0, 0]),
            position=torch.tensor([1, 2]),
            keys=np.array([3], np.uint64),
            slices=np.zeros(1, np.int64),
            rows=np.zeros(1, np.int64),
        )
    )
    value = {key: estimate.value for key, estimate in sums.estimates(0).items()}
    assert value["turnover"] == pytest.approx(2 / 3)
    assert (value["codes_base"], value["codes_tuned"]) == (1.0, 1.0)
    assert value["unexplained_base"] == pytest.approx(0.0)
    assert value["unexplained_tuned"] == pytest.approx(1 / 6)
    assert sums.estimates(0, 1)["turnover"].value is None, "no data is never 0"


def test_features_that_surely_changed_come_first(found: Any):
    features = found.results["feature_rates"]["pair"].features
    order = pick(features, 1000, 0.05)
    at = np.searchsorted(np.asarray(features.data["feature"]), order)
    surely = changed(found.results["feature_rates"]["pair"])[at]
    size = np.abs(np.asarray(features.data["difference"]))[at]
    assert surely.sum() == surely[: surely.sum()].sum()
    for part in (size[surely], size[~surely]):
        assert (np.diff(part) <= 0).all()
    assert (size > 0).all()


@pytest.mark.parametrize("wrong", [{"layer": 1.5}, {"q": 0.0}, {"scale": 0.0}, {"shown": 0}])
def test_nonsense_is_refused_by_name(wrong: dict[str, Any]):
    with pytest.raises(BadInput, match=next(iter(wrong))):
        Config(**wrong)


def small(tokens_of: dict[str, Any], **changes: Any) -> Result:
    """Four features that fire, 3, 5, 6 and 8; the first two surely changed."""
    q = np.array([0.01, 0.02, 0.9, np.nan])
    data: dict[str, Any] = {
        name: np.zeros(4) for name in ("low", "high", "ratio", "ratio_low", "ratio_high", "p", "code_q")
    }
    data |= {"feature": np.array([3, 5, 6, 8]), "difference": np.array([0.1, -0.2, 0.5, 0.0]), "q": q}
    data |= {"base": np.full(4, 0.5), "tuned": np.full(4, 0.5), "in_texts": np.full(4, 9)}
    features = Columns(data)
    figure = Estimate(0.25, "share", 40, 30)
    fixed: dict[str, Any] = {
        "numbers": {key: figure for key, _ in KEYS}, "slices": {}, "source": None, "layer": 1, "tokens": 40, "texts": 30,
        "features": features, "shown": np.array([5, 3]), "words": Columns(tokens_of), "passages": (), "q": 0.05, "lost": 0,
    }  # fmt: skip
    return Result(**(fixed | changes))


WORDS = {
    "feature": [5, 5, 5], "head": ["base", "base", "tuned"], "sign": ["promoted", "suppressed", "promoted"],
    "rank": [1, 1, 1], "token": [" up", " down", " other"], "token_id": [7, 8, 9], "logit": [2.0, -2.0, 1.0],
}  # fmt: skip


def test_what_is_sure_comes_before_what_is_large():
    features = small(WORDS).features
    assert pick(features, 9, 0.05).tolist() == [5, 3, 6], "and what did not change not at all"
    assert pick(features, 1, 0.05).tolist() == [5]


def test_the_page_counts_what_exceeds_the_nulls_and_says_what_is_lost():
    theirs: dict[str, Any] = {name: np.zeros(2) for name in ("base", "tuned")}
    theirs |= {"feature": np.array([3, 7]), "difference": np.array([-0.15, 0.9]), "q": np.array([0.01, 0.01])}
    louder = Columns(theirs)
    result, null = small(WORDS, lost=2), small(WORDS, features=louder, shown=np.array([3, 7]))
    assert largest(result, [null, null]) == pytest.approx([0.15, 0.0, 0.0, 0.0])
    page = describe(result, [null])
    assert "2 of 4 features" in page.summary
    assert "1 of them by more than in any of 1 nulls" in page.summary
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    assert tables["nulls"].rows[0][-2:] == (2, 1)
    assert tables["tokens"].rows == ((5, 1, " up", 7, 2.0), (5, -1, " down", 8, -2.0))
    assert tables["features"].rows[0][tables["features"].columns.index("tokens_up")] == "up"
    said = [block.text for block in page.blocks if isinstance(block, Warning)]
    assert said == ["2 tokens had states that are not finite and count nowhere: try --dtype float32."]
