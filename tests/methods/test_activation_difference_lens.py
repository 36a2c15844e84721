"""activation_difference_lens on real tiny models: against a dense recomputation, other batches, other heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from tests.worlds import rows, world

import finetrace as ft
from finetrace.core.card import method
from finetrace.core.page import Figure, Heatmap, Line, Table, Warning
from finetrace.data import build_corpus, read_rows, shards
from finetrace.data.corpus import Corpus
from finetrace.engine import Contrast, Job, make_subject
from finetrace.engine.run import run_shard
from finetrace.methods.activation_difference_lens import Config
from finetrace.methods.activation_difference_lens.describe import describe
from finetrace.methods.activation_difference_lens.observe import DifferenceLens, observer
from finetrace.methods.activation_difference_lens.ranking import top_tokens, z_nulls
from finetrace.methods.activation_difference_lens.result import Result
from finetrace.models import Pair, open_pair
from finetrace.stats.moderated import z_against

START = Config(layer=0.5, position="start")

NAME = "activation_difference_lens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    base, tuned, nulls = world(folder, nulls=3)
    return open_pair(base, tuned, nulls={null.name: null for null in nulls})


def read(
    pair: Pair,
    data: list[dict[str, Any]],
    *,
    config: Config | None = None,
    side: str = "tuned",
    batch: int = 4,
    shard_tokens: int = 10**6,
) -> DifferenceLens:
    """One observer over all shards."""
    config = config or START
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    known = make_subject(pair, corpus.slices, side, 0)
    card = method(NAME)
    job = Job(
        NAME,
        Contrast("any", side),
        card.needs(config),
        lambda: observer(config, known),
        journal=Path("unused"),
    )
    total = observer(config, known)
    for shard in shards(corpus, shard_tokens):
        (part,) = run_shard(pair, corpus, shard, [job], batch)
        total.merge(part)  # pyright: ignore[reportArgumentType] - the job made one
    return total


def states(pair: Pair, corpus: Corpus, row: int, side: str) -> np.ndarray:
    """[layer, pos, d_model], float64, of one text on its own."""
    ids = torch.tensor(corpus.tokens[row].ids[None].astype("int64"))
    layers = tuple(range(pair.n_layers))
    hidden = pair.trunk(side, ids, torch.ones_like(ids), layers, False)
    return np.stack([hidden.layers[layer][0].double().numpy() for layer in layers])


def dense(pair: Pair, corpus: Corpus, place: str, config: Config) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Rows with tokens at a place, and their mean differences and base states there [text, layer, d_model]."""
    found, differences, bases = [], [], []
    for row, tokens in enumerate(corpus.tokens):
        answers = [p for p in range(1, len(tokens)) if tokens.role[p] == 4]
        anchor = answers[0] if answers else None
        label = {
            p: f"answer {p - anchor}" if anchor is not None else ("first" if p == 0 else f"text {p}")
            for p in range(len(tokens) - 1)
            if anchor is None or p > 0
        }
        low, high = (1, 4) if anchor is None else (anchor, anchor + 3)
        if place == "start":
            at = [p for p in label if low <= p <= high]
        elif place == "rest":
            start = 0 if anchor is None else anchor - config.before
            stop = config.positions if anchor is None else anchor + config.positions
            at = [p for p in label if p > 0 and not start <= p < stop]
        else:
            at = [p for p, name in label.items() if name == place]
        if at:
            base, tuned = states(pair, corpus, row, "base"), states(pair, corpus, row, "tuned")
            found.append(row)
            differences.append((tuned - base)[:, at].mean(1))
            bases.append(base[:, at].mean(1))
    return found, np.array(differences), np.array(bases)


@pytest.mark.parametrize("place", ["start", "rest", "first", "text 3", "answer -2", "answer 0", "answer 7"])
def test_every_figure_is_that_of_a_dense_recomputation(pair: Pair, place: str):
    data, config = rows(30), Config(groups=4)
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    result = read(pair, data, config=config).result()
    texts, differences, _ = dense(pair, corpus, place, config)
    profile = result.everywhere.profile
    at = profile.places.index(place)
    assert profile.texts[at] == len(texts)
    layer = result.layer
    np.testing.assert_allclose(
        result.everywhere.place_mean[at], differences[:, layer].mean(0), rtol=2e-5, atol=2e-6
    )
    for one in range(pair.n_layers):
        vectors = differences[:, one]
        n, trace = len(vectors), np.trace(np.cov(vectors.T))
        products = (vectors @ vectors.T)[~np.eye(n, dtype=bool)].mean()
        assert profile.norm[at, one] == pytest.approx(np.sqrt(max(products, 0)), rel=1e-4, abs=1e-5)
        if place != "first":  # there all texts are alike
            assert profile.error[at, one] == pytest.approx(np.sqrt(trace / n), rel=1e-4)
            snr = n * np.square(vectors.mean(0)).sum() / trace
            assert profile.snr[at, one] == pytest.approx(snr, rel=1e-4)
    if place == "first":
        assert np.isnan(profile.snr[at]).all(), "BOS is alike in all texts: no noise to compare with"


def test_the_numbers_are_those_of_the_configured_place(pair: Pair):
    data = rows(30)
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    for position in ("start", "2"):
        config = Config(position=position, layer=1.0)
        result = read(pair, data, config=config).result()
        if position == "start":
            _, differences, _ = dense(pair, corpus, "start", config)
        else:  # position 2 of texts and, from the first answer token, of conversations
            parts = [dense(pair, corpus, f"{kind} 2", config)[1] for kind in ("text", "answer")]
            differences = np.concatenate(parts)
        assert result.layer == pair.n_layers - 1
        assert result.numbers["difference_norm"].clusters == len(differences)
        np.testing.assert_allclose(result.everywhere.mean, differences.mean(0), rtol=2e-5, atol=2e-6)
        profile = result.everywhere.profile
        assert profile.places[0] == position
        wanted = profile.norm[0, result.layer] / profile.base_norm[0, result.layer]
        assert result.numbers["difference_norm"].value == pytest.approx(wanted)


@pytest.mark.parametrize("changed", [False, True])
def test_each_sides_mean_state_is_read_through_its_own_head(changed: bool, pair: Pair, tmp_path: Path):
    data = rows(30)
    if changed:
        base = save_base(tmp_path, tied=False)
        pair = open_pair(base, save_full(tmp_path, base, touch=("q_proj", "lm_head"), scale=0.3))
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    result = read(pair, data).result()
    _, differences, bases = dense(pair, corpus, "start", START)
    fixed = result.everywhere.fixed
    assert fixed is not None
    state = torch.from_numpy(bases[:, result.layer].mean(0)[None]).float()
    moved = state + torch.from_numpy(differences[:, result.layer].mean(0)[None]).float()
    words = pair.vocabulary
    allowed = np.flatnonzero(~(words.special | words.dead))
    for side, vector, table in (("base", state, fixed.base), ("tuned", moved, fixed.tuned)):
        logits = pair.lens(side, vector, direction=False)[0].numpy()[allowed]
        order = np.argsort(-(logits - logits.mean()), kind="stable")[:20]
        assert list(table.data["token_id"]) == words.ids[allowed][order].tolist()
        np.testing.assert_allclose(
            np.asarray(table.data["logit"]), (logits - logits.mean())[order], rtol=1e-3, atol=1e-4
        )


def test_promoted_and_suppressed_are_the_ends_of_one_centred_order(pair: Pair):
    result = read(pair, rows(30)).result()
    fixed, found = result.everywhere.fixed, result.everywhere
    assert fixed is not None
    logits = found.logits[list(result.layers_read).index(result.layer)]
    assert logits.dtype == np.float32
    assert float(logits.mean(dtype=np.float64)) == pytest.approx(0.0, abs=1e-6)
    order = np.argsort(-logits, kind="stable")
    assert list(fixed.promoted.data["token_id"]) == result.token_ids[order[:20]].tolist()
    assert list(fixed.suppressed.data["token_id"]) == result.token_ids[order[::-1][:20]].tolist()
    words = pair.vocabulary
    left_out = set(words.ids[words.special | words.dead].tolist())
    assert left_out, "the tiny tokenizer has special tokens"
    assert not left_out & set(result.token_ids.tolist())


def test_batches_shards_and_order_move_nothing_but_the_last_bits(pair: Pair):
    data = rows(40)
    wanted = read(pair, data, batch=4).result()
    for other in (
        read(pair, data, batch=1),
        read(pair, data, batch=7, shard_tokens=60),
        read(pair, data[::-1], batch=3),
    ):
        result = other.result()
        for name, figures in wanted.slices.items():
            for key, estimate in figures.items():
                again = result.slices[name][key]
                assert (again.n, again.clusters) == (estimate.n, estimate.clusters)
                assert again.value == pytest.approx(estimate.value, rel=1e-4), (name, key)
            found, ours = result.found[name], wanted.found[name]
            order = [found.profile.places.index(place) for place in ours.profile.places]
            np.testing.assert_array_equal(found.profile.texts[order], ours.profile.texts)
            np.testing.assert_allclose(found.mean, ours.mean, rtol=1e-4, atol=1e-6)
        first, second = wanted.everywhere.fixed, result.everywhere.fixed
        assert first is not None
        assert second is not None
        assert list(first.promoted.data["token_id"]) == list(second.promoted.data["token_id"])


def test_the_state_is_as_large_for_ten_times_the_texts(pair: Pair):
    def size(n: int) -> int:
        state = read(pair, rows(n), config=Config(groups=4), batch=16).state()
        return sum(t.numel() * t.element_size() for t in state.values())

    small, large = size(60), size(300)
    assert large == small, "every slice and group was seen in the small corpus already"
    one = pair.n_layers * pair.d_model * 8
    # `rows` has conversations in one slice and texts in the other two.
    assert large < 1.2 * (4 + 1) * (13 + 10 + 10) * one, "as the README says"


def test_base_against_itself_has_no_tokens(pair: Pair):
    result = read(pair, rows(24), side="base").result()
    assert result.numbers["difference_norm"].value == 0
    assert result.numbers["snr"].value is None
    assert result.everywhere.fixed is None
    assert top_tokens(result, "text") == ()
    page = describe(result)
    assert "the same" in page.summary
    assert not [b for b in page.blocks if isinstance(b, Table) and b.key == "promoted"]


def test_a_head_that_did_not_change_gives_the_same_order_on_both_sides(pair: Pair):
    fixed = read(pair, rows(24)).result().everywhere.fixed
    assert fixed is not None
    for table in (fixed.promoted, fixed.suppressed):
        assert list(table.data["other_rank"]) == list(range(1, 21))


@pytest.mark.parametrize("touch", ["lm_head", "model.norm"])
def test_a_head_or_norm_that_changed_gives_another_order(touch: str, tmp_path: Path):
    base = save_base(tmp_path, tied=False)
    tuned = save_full(tmp_path, base, touch=("q_proj", touch), scale=0.3)
    result = read(open_pair(base, tuned), rows(24)).result()
    fixed = result.everywhere.fixed
    assert fixed is not None
    assert list(fixed.promoted.data["other_rank"]) != list(range(1, 21))


def test_another_vocabulary_is_read_over_the_shared_tokens(tmp_path: Path):
    wide = save_base(tmp_path, "llama", name="wide", vocab=70, tokenizer=tiny_tokenizer(68))
    pair = open_pair(wide, save_base(tmp_path, "llama", seed=3))
    assert pair.shared_ids is not None
    result = read(pair, rows(24)).result()
    assert set(result.token_ids.tolist()) < set(pair.shared_ids.tolist())
    assert result.everywhere.logits.shape == (pair.n_layers, len(result.token_ids))


def test_a_null_is_read_at_the_same_places_and_tokens_meet_it_there(pair: Pair):
    data = rows(40)
    result = read(pair, data).result()
    nulls = [read(pair, data, side=f"null_{i}").result() for i in range(3)]
    page = describe(result, nulls)
    tables = {block.key: block for block in page.blocks if isinstance(block, Table)}
    assert {
        "promoted",
        "suppressed",
        "layers",
        "slices",
        "picked",
        "states",
        "promoted_text",
    } <= tables.keys()
    layer = list(result.layers_read).index(result.layer)
    wanted = z_against(
        result.found["text"].logits[layer], np.stack([null.found["text"].logits[layer] for null in nulls])
    )
    assert wanted is not None
    columns = tables["promoted_text"].columns
    assert columns == ("token", "token_id", "logit", "z_noise", "z_nulls", "other_rank")
    for row in tables["promoted_text"].rows:
        at = list(result.token_ids).index(row[1])
        assert row[4] == pytest.approx(wanted[at])
    lines = {b.key: b.plot for b in page.blocks if isinstance(b, Figure)}
    norms = lines["norms"]
    assert isinstance(norms, Line)
    assert [series.name for series in norms.series] == ["pair", "3 nulls"]
    assert isinstance(lines["against_nulls"], Line)
    alone = {block.key: block for block in describe(result).blocks if isinstance(block, Table)}
    assert all(row[4] is None for row in alone["promoted"].rows)
    assert "Without nulls" in describe(result).summary
    assert z_nulls(None, []) is None


def test_the_ranking_is_the_promoted_table_however_long(pair: Pair):
    result = read(pair, rows(40)).result()
    fixed = result.found["dishes"].fixed
    assert fixed is not None
    assert top_tokens(result, "dishes") == tuple(fixed.promoted.data["token_id"])
    assert len(top_tokens(result, "dishes", n=30)) == 30


def test_the_map_leaves_out_the_first_token_and_bare_numbers(pair: Pair):
    page = describe(read(pair, rows(40), config=Config(position="1")).result())
    (plot,) = [b.plot for b in page.blocks if isinstance(b, Figure) and b.key == "snr_map"]
    assert isinstance(plot, Heatmap)
    assert plot.x[0] == "text 1"
    assert plot.x[-2:] == ("start", "rest")
    assert "first" not in plot.x
    assert len(plot.y) == pair.n_layers


def test_few_texts_and_a_place_that_none_reaches_are_said(pair: Pair):
    result = read(pair, rows(6), config=Config(position="7")).result()
    said = " ".join(block.text for block in describe(result).blocks if isinstance(block, Warning))
    assert "Fewer than" in said


def test_an_audit_shows_it_and_its_verdict_and_keeps_it(tmp_path: Path):
    base, tuned, nulls = world(tmp_path, nulls=4)

    def audit() -> Any:
        return ft.audit(
            str(base),
            str(tuned),
            data=rows(40),
            nulls=[str(null) for null in nulls],
            methods=[NAME],
            out=tmp_path / "out",
            dose=False,
        )

    found = audit()
    reading = found[NAME].numbers["difference_norm"]
    assert reading.nulls is not None
    assert reading.nulls.high is not None
    assert (reading.value or 0) > reading.nulls.high
    assert {v.change for v in found.findings.findings[NAME].verdicts.values()} == {"beyond-nulls"}
    assert "Promoted tokens" in (tmp_path / "out" / "report.html").read_text()
    made, kept = found.results[NAME]["pair"], audit().results[NAME]["pair"]
    assert isinstance(kept, Result)
    assert kept.everywhere.logits.tobytes() == made.everywhere.logits.tobytes()


def test_a_lora_on_one_layer_shows_from_that_layer_on(tmp_path: Path):
    base = save_base(tmp_path, layers=4)
    lora = save_lora(tmp_path, base, scale=0.1, targets=["q_proj", "o_proj"], layers_to_transform=[2])
    profile = read(open_pair(base, lora), rows(24)).result().everywhere.profile
    assert (profile.norm[:, :2] == 0).all()
    assert (profile.norm[0, 2:] > 0).all()
