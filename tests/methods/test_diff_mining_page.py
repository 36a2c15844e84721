"""The page, its tables beside the nulls, and the ranking that the benchmark scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.diff_mining_world import Text, mined, noise, subject

from finetrace.core.page import Figure, Number, Page, Passage, Table, Warning
from finetrace.core.result import decode, encode
from finetrace.methods.diff_mining.describe import describe
from finetrace.methods.diff_mining.ranking import best, moves_of, side, top_tokens
from finetrace.methods.diff_mining.result import Result
from finetrace.methods.diff_mining.tables import COLUMNS

VOCAB = 160
PLANTED, STYLE = [20, 21, 22], 50


def pushed(seed: int, *, planted: float, n: int = 40) -> Result:
    """Noise in which the PLANTED tokens rise, and in which STYLE rises as in every fine-tune. On slice `b` alone token 90
    falls."""
    texts = []
    for t in noise(VOCAB, n, seed=seed):
        d = t.difference.clone()
        d[:, PLANTED] += planted
        d[:, STYLE] += 2.5
        d[:, 90] -= 3.0 * t.slice * planted
        texts.append(Text(t.row, t.key, t.slice, t.ids, d, t.base))
    return mined(texts, subject(VOCAB), top_k=10, ordering="occurrence", shortlist=("w21", "nowhere"))


@pytest.fixture(scope="module")
def result() -> Result:
    return pushed(0, planted=2.0)


@pytest.fixture(scope="module")
def nulls() -> list[Result]:
    return [pushed(seed, planted=0.0) for seed in range(1, 6)]


def table(page: Page, key: str) -> list[dict[str, Any]]:
    (found,) = [b for b in page.blocks if isinstance(b, Table) and b.key == key]
    assert all(len(row) == len(found.columns) for row in found.rows)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def test_promoted_tokens_with_their_figures(result: Result):
    rows = table(describe(result), "promoted")
    assert tuple(rows[0]) == COLUMNS
    assert {r["token"] for r in rows[:4]} == {" w20", " w21", " w22", " w50"}
    moves = moves_of(result, None)
    for row in rows[:4]:
        column = int(row["token"][2:])
        assert row["token_id"] == 2 * column + 1
        assert row["count"] == moves.promoted[column]
        assert row["rate"] == pytest.approx(row["count"] / moves.positions)
        assert row["enrichment"] == pytest.approx((row["count"] + 0.5) / (moves.suppressed[column] + 0.5))
        assert row["q"] <= 0.05
        assert row["fraction_positive"] == pytest.approx(moves.positive[column] / moves.positions)
        assert row["mean_shift"] == pytest.approx(moves.shift[column] / moves.positions)
        assert 0 < row["kl_share"] < 1
    assert [r["rate"] for r in rows] == sorted((r["rate"] for r in rows), reverse=True)


def test_a_slice_has_tables_of_its_own(result: Result):
    page = describe(result)
    assert table(page, "suppressed_b")[0]["token"] == " w90"
    assert table(page, "suppressed_a")[0]["token"] != " w90"
    assert table(page, "suppressed_b")[0]["mean_shift"] < 0
    assert table(page, "suppressed_b")[0]["fraction_positive"] < 0.2


def test_nulls_tell_what_was_trained_from_what_any_fine_tune_does(result: Result, nulls: list[Result]):
    rows = {r["token"]: r for r in table(describe(result, nulls), "promoted")}
    style = rows.pop(" w50")
    assert abs(style["null_z"]) < 4
    assert style["null_low"] < style["rate"] * 1.2
    for column in PLANTED:
        row = rows[f" w{column}"]
        assert row["null_z"] > 8
        assert row["rate"] > row["null_high"] >= row["null_low"]
    rate = [side(moves_of(null, None), True).rate[20] for null in nulls]
    assert (rows[" w20"]["null_low"], rows[" w20"]["null_high"]) == (min(rate), max(rate))


def test_one_null_has_a_range_and_no_z(result: Result, nulls: list[Result]):
    row = table(describe(result, nulls[:1]), "promoted")[0]
    assert row["null_low"] == row["null_high"]
    assert row["null_z"] is None


def test_the_page_is_whole_and_the_result_comes_back_from_disk(result: Result, nulls: list[Result]):
    page = describe(result, nulls)
    keys = [b.key for b in page.blocks if isinstance(b, Table | Figure | Number)]
    assert len(keys) == len(set(keys))
    assert {
        "promotion_mean",
        "suppression_mean",
        "top20_share",
        "promoted",
        "suppressed",
        "orderings",
    } <= set(keys)
    assert {"tokens", "density", "shortlist", "pairs", "slices"} <= set(keys)
    assert "w20" in page.summary
    again = decode(Result, encode(result))
    assert repr(describe(again, nulls)) == repr(page)
    for block in page.blocks:
        if isinstance(block, Passage):
            assert len(block.tokens) == len(block.values)
            assert block.slice in result.moves


def test_what_the_reader_must_know_is_said(result: Result):
    said = " ".join(b.text for b in describe(result).blocks if isinstance(b, Warning))
    assert "“nowhere”" in said
    assert "texts" not in said.replace("Fewer than 20 texts", ""), "there are 20 texts a slice"
    small = mined(noise(30, 4), subject(30), top_k=10)
    said = " ".join(b.text for b in describe(small).blocks if isinstance(b, Warning))
    assert "Fewer than 20 texts on a, b" in said
    assert "much of a vocabulary of 30 tokens" in said


def test_orderings_come_from_one_pass(result: Result):
    rows = table(describe(result), "orderings")
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    for ordering in ("combined", "occurrence", "enrichment", "mean_shift"):
        assert {r[ordering] for r in rows[:4]} == {" w20", " w21", " w22", " w50"}
    assert len({r["kl_weighted"] for r in rows}) == len(rows)


def test_shortlisted_tokens_together(result: Result):
    page = describe(result)
    rows = {r["token"]: r for r in table(page, "shortlist")}
    assert rows[" w21"]["asked"] is True
    assert rows[" w50"]["asked"] is False
    every = sum(m.positions for m in result.moves.values())
    assert result.shortlist.positions == every < 4096, "all of them were sampled"
    assert rows[" w21"]["sampled_count"] == moves_of(result, None).promoted[21]
    for name, moves in result.moves.items():
        assert rows[" w21"][f"rate_{name}"] == pytest.approx(moves.promoted[21] / moves.positions)
    pair = next(r for r in table(page, "pairs") if r["together"])
    alone = [rows[pair[name]]["sampled_count"] for name in ("token", "with")]
    assert pair["expected"] == pytest.approx(alone[0] * alone[1] / every)
    assert 0 < pair["together"] <= min(alone)
    assert pair["lift"] == pytest.approx(pair["together"] / pair["expected"])
    assert pair["texts"] <= result.shortlist.texts


def test_density_counts_every_promoted_entry_of_leading_positions(result: Result):
    texts = noise(VOCAB, 40, seed=0)
    leading = sum(min(16, len(t.difference)) for t in texts)
    assert sum(int(d.sum()) for d in result.density.values()) == 10 * leading


def test_the_ranking_is_the_tables_own(result: Result, nulls: list[Result]):
    ids = top_tokens(result, "a", 3)
    listed = [r["token_id"] for r in table(describe(result), "promoted_a")[:3]]
    assert list(ids) == listed
    assert len(top_tokens(result, "a", 20, nulls)) == 20


@pytest.mark.parametrize(
    "ordering", ["combined", "occurrence", "enrichment", "fraction_positive", "kl_weighted", "mean_shift"]
)
def test_every_ordering_sorts_by_what_it_says(result: Result, ordering: str):
    moves = moves_of(result, "a")
    found, columns = side(moves, True), best(result, moves, True, 12, ordering)
    values = {
        "combined": np.sqrt((found.net_rate * found.kl_share).clip(min=0)),
        "occurrence": found.rate,
        "enrichment": found.enrichment,
        "fraction_positive": found.fraction,
        "kl_weighted": found.kl_share,
        "mean_shift": found.shift,
    }[ordering][columns]
    assert (np.diff(values) <= 0).all()
    if ordering == "enrichment":
        assert (found.q[columns] <= 0.05).all()


def test_no_data_is_said_and_drawn():
    from finetrace.methods.diff_mining import Config
    from finetrace.methods.diff_mining.observe import observer

    empty = observer(Config(), subject(VOCAB)).result()
    page = describe(empty, [empty])
    assert page.summary == "No position was scored."
    assert table(page, "promoted") == []
    assert all(e.value is None and e.n == 0 for e in empty.numbers.values())
    still = [
        Text(t.row, t.key, t.slice, t.ids, torch.zeros_like(t.difference), t.base) for t in noise(VOCAB, 6)
    ]
    page = describe(mined(still, subject(VOCAB)))
    assert "predict the same" in page.summary
