"""The latent table, its picks, words and passages, against plain loops over tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.extremes import LEVELS, SILENT, TOP, Extreme, Extremes
from finetrace.dictionaries.latents import Firings, latent_table, pick, top_tokens
from finetrace.dictionaries.reading import held_out, tokens
from finetrace.dictionaries.scaling import Scaling
from finetrace.engine import Step, Subject
from finetrace.models import Vocabulary
from finetrace.stats import wilson

D, LATENTS, LONGEST, WINDOW = 6, 8, 14, 6


def crosscoder(**changes: Any) -> Dictionary:
    g = torch.Generator().manual_seed(0)
    decoder = torch.randn(2, LATENTS, D, generator=g)
    decoder[0, :2] = 0.0
    bias = 0.2 * torch.randn(LATENTS, generator=g)
    bias[-1] = -99.0
    fixed: dict[str, Any] = {
        "encoder": torch.randn(2, D, LATENTS, generator=g),
        "encoder_bias": bias,
        "decoder": decoder,
        "decoder_bias": torch.zeros(2, D),
        "mean": torch.zeros(2, D),
        "scale": torch.tensor([1.0, 2.0]),
        "owner": torch.zeros(LATENTS, dtype=torch.int8),
        "threshold": 6.0,
        "kind": "batch_topk",
        "code_norm": "crosscoder",
    }
    return Dictionary(**(fixed | changes))


def step(rows: int, seed: int, first: int = 0) -> Step:
    """A batch of texts of 4 to 14 tokens of 5 words, in two slices."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    length = torch.from_numpy(rng.integers(4, LONGEST + 1, rows))
    place = torch.arange(LONGEST).expand(rows, LONGEST)
    ids = torch.from_numpy(rng.integers(0, 5, (rows, LONGEST)))
    base = torch.randn(rows, LONGEST, D, generator=g)
    both = (base, base + torch.randn(rows, LONGEST, D, generator=g))
    return Step(
        row=torch.arange(first, first + rows),
        key=rng.integers(0, 2**64, rows, dtype=np.uint64),
        slice=torch.arange(rows) % 2,
        ids=ids.where(place < length[:, None], 0),
        keep=place < length[:, None] - 1,
        role=torch.ones_like(ids),
        position=place,
        next_id=ids.roll(-1, 1),
        hidden=lambda layer: both,
    )


def loops(dictionary: Dictionary, some: list[Step]) -> dict[tuple[int, int], Tensor]:
    """(corpus row, position) -> codes [latent], of the tokens that count."""
    found: dict[tuple[int, int], Tensor] = {}
    for one in some:
        base, tuned = one.hidden(0)
        for i, row in enumerate(one.row.tolist()):
            for p in range(1, LONGEST):
                if one.keep[i, p]:
                    found[row, p] = dictionary.codes(torch.stack([base[i, p], tuned[i, p]])[None])[0]
    return found


STEPS = [step(9, 1), step(7, 2, first=9)]


def test_the_table_is_what_loops_over_tokens_count():
    some = crosscoder()
    firings, scaling = Firings(some, "both", 2), Scaling(some, "both")
    for one in STEPS:
        firings.see(tokens(one, 0))
        scaling.see(tokens(one, 0))
    table = latent_table(some, firings, scaling.betas(fewest=5), ("first", "second")).data
    plain = loops(some, STEPS)
    codes = torch.stack(list(plain.values())).double().numpy()
    live = ~np.asarray(table["dead"])
    assert list(np.flatnonzero(~live)) == [LATENTS - 1]
    np.testing.assert_allclose(np.asarray(table["frequency"]), (codes > 0).mean(0))
    np.testing.assert_array_equal(table["active_tokens"], (codes > 0).sum(0))
    np.testing.assert_allclose(np.asarray(table["largest_code"])[live], codes.max(0)[live], rtol=1e-6)
    means = codes.sum(0)[live] / (codes > 0).sum(0)[live]
    np.testing.assert_allclose(np.asarray(table["mean_code"])[live], means, rtol=1e-6)
    assert np.isnan(np.asarray(table["mean_code"])[~live]).all()
    written = (some.decoder[1] / 2 - some.decoder[0]).double().square().sum(1).numpy()
    np.testing.assert_allclose(np.asarray(table["energy"]), (codes**2).mean(0) * written, rtol=1e-5)
    texts = np.array([row for row, _ in plain])
    for j in range(LATENTS):
        assert table["active_texts"][j] == len(set(texts[codes[:, j] > 0].tolist()))
    second = np.array([(row if row < 9 else row - 9) % 2 == 1 for row in texts])
    np.testing.assert_allclose(np.asarray(table["frequency in second"]), (codes[second] > 0).mean(0))
    assert table["tag"] == some.tags()
    assert table["tag"][:2] == ["tuned-only"] * 2
    base, tuned = some.decoder
    cosine = torch.cosine_similarity(base[2:], tuned[2:], dim=1)
    np.testing.assert_allclose(np.asarray(table["decoder_cosine"])[2:], cosine.numpy(), atol=1e-6)
    assert np.isnan(np.asarray(table["decoder_cosine"])[:2]).all()
    assert "beta_error_base_along_tuned_low" in table
    assert "ratio_reconstruction_along_tuned_high" in table
    assert np.isnan(np.asarray(table["q"])[~live]).all()


def test_a_frequency_is_less_sure_where_a_latents_tokens_go_together():
    some = crosscoder(threshold=0.0, encoder_bias=torch.zeros(LATENTS))
    together, apart = Firings(some, "both"), Firings(some, "both")
    g = torch.Generator().manual_seed(4)
    for firings, per_text in ((together, True), (apart, False)):
        rows = torch.randn(40, LONGEST, D, generator=g)
        rows = rows[:, :1].expand(40, LONGEST, D) if per_text else rows
        one = replace(step(40, 3), hidden=lambda layer, rows=rows: (rows, rows))
        firings.see(tokens(one, 0))
        rate, low, high = firings.frequency()
        n = int(firings.tokens.sum())
        for j in range(LATENTS):
            plain = wilson(int(firings.active[j]), n)
            assert plain is not None
            ratio = (high[j] - low[j]) / (plain.high - plain.low)
            assert ratio > 1.0
            assert ratio > 1.8 if per_text else ratio < 1.5
    silent = Firings(crosscoder(encoder_bias=torch.full((LATENTS,), -99.0)), "both")
    silent.see(tokens(STEPS[0], 0))
    rate, low, high = silent.frequency()
    assert (rate == 0).all()
    assert (low == 0).all()
    # Nine texts without it: up to a third of them may have it.
    assert (high > 0.25).all()
    nothing = Firings(some, "both").frequency()
    assert all(np.isnan(part).all() for part in nothing)


def test_parts_merged_are_the_whole():
    some = crosscoder()
    parts = [Firings(some, "both", 2) for _ in range(3)]
    for firings, which in zip(parts, ([0, 1], [0], [1]), strict=True):
        for i in which:
            firings.see(tokens(STEPS[i], 0))
    parts[2].merge(parts[1])
    whole, merged = (latent_table(some, one).data for one in (parts[0], parts[2]))
    for name, values in whole.items():
        if isinstance(values, np.ndarray):
            np.testing.assert_allclose(np.asarray(merged[name]), values, rtol=1e-12)


def test_tokens_leave_out_first_ones_others_texts_and_what_is_not_finite():
    one = STEPS[0]
    all_of, later = tokens(one, 0, skip=0), tokens(one, 0, skip=2)
    assert len(all_of) == int(one.keep.sum())
    assert int(later.position.min()) == 2
    held = tokens(one, 0, only=lambda keys: held_out(keys, 0.5))
    wanted = held_out(one.key, 0.5)
    assert 0 < wanted.sum() < 9
    assert set(held.text.tolist()) == set(np.flatnonzero(wanted).tolist())
    base, tuned = one.hidden(0)
    broken = tuned.clone()
    broken[3, 2, 0] = torch.inf
    lost = tokens(replace(one, hidden=lambda layer: (base, broken)), 0, skip=0)
    assert lost.lost == int(one.keep[3, 2])
    assert len(lost) == len(all_of) - lost.lost
    assert bool(lost.tuned.isfinite().all())


def ranked(**columns: Any) -> Columns:
    fixed = {"dead": np.zeros(6, bool), "energy": np.arange(1.0, 7.0)}
    return Columns(fixed | columns)


def test_the_confirmed_come_first_and_the_dead_never():
    assert pick(ranked(), 3).tolist() == [5, 4, 3]
    dead = np.array([False] * 5 + [True])
    assert pick(ranked(dead=dead, energy=np.array([1.0, 0.0, np.nan, 3.0, 3.0, 9.0])), 9).tolist() == [
        3,
        4,
        0,
    ]
    table = ranked(
        tag=["tuned-only", "tuned-only", "tuned-only", "shared", "shared", "base-only"],
        confirmed=np.array([True, False, False, False, False, False]),
        shrunk=np.array([False, False, True, False, False, False]),
        q=np.array([0.01, np.nan, 0.01, 0.2, 0.01, 0.9]),
    )
    assert pick(table, 6).tolist() == [0, 4, 5, 3, 2, 1], "a tag by itself puts none first"
    assert pick(table, 2).tolist() == [0, 4]
    assert pick(table, 6, q=0.5).tolist() == [0, 4, 3, 5, 2, 1]


def subject() -> Subject:
    """Heads of eight tokens that read a coordinate each; the tuned one's read coordinate 0 twice as strongly."""
    head = torch.zeros(8, D)
    head[:D] = torch.eye(D)
    other = head.clone()
    other[3, 0] = 3.0
    flags = np.zeros(8, bool)
    special, dead = flags.copy(), flags.copy()
    special[1], dead[7] = True, True
    vocabulary = Vocabulary(np.arange(8) + 100, tuple(f"t{i}" for i in range(8)), special, dead)
    return Subject(
        slices=("only",),
        n_layers=1,
        d_model=D,
        vocab_size=8,
        seed=0,
        spell=lambda ids: tuple(f"w{i}" for i in ids),
        words=lambda: vocabulary,
        lens=lambda vectors, direction=True: (vectors @ head.T, vectors @ other.T),
    )


def test_a_decoders_words_are_read_through_both_heads():
    vectors = torch.zeros(3, D)
    vectors[0, 0], vectors[2, 1], vectors[2, 4] = 0.01, 5.0, 1.0
    table = top_tokens(vectors, subject(), 2).data
    assert sorted(set(np.asarray(table["vector"]).tolist())) == [0, 2]
    rows = list(zip(*(table[name] for name in ("vector", "head", "sign", "rank", "token")), strict=True))
    assert rows[0] == (0, "base", "promoted", 1, "t0")
    assert (0, "tuned", "promoted", 1, "t3") in rows
    assert (0, "tuned", "promoted", 2, "t0") in rows
    # Coordinate 1 is the strongest of the third vector, but its token says nothing; nor does the dead one.
    assert (2, "base", "promoted", 1, "t4") in rows
    assert not {"t1", "t7"} & set(table["token"])
    assert set(np.asarray(table["token_id"]).tolist()) <= {100, 102, 103, 104, 105, 106}
    size = 6**0.5
    first = np.asarray(table["logit"])[0]
    assert first == pytest.approx(size - size / 6)
    assert len(top_tokens(torch.zeros(2, D), subject())) == 0


def shown(some: Dictionary, order: list[int], keep: int = 2) -> tuple[Extreme, ...]:
    firings = Firings(some, "both")
    for one in STEPS:
        firings.see(tokens(one, 0))
    which = np.array([3, 0, LATENTS - 1])
    found = Extremes(some, "both", which, firings.largest[which], keep=keep, window=WINDOW)
    for i in order:
        found.see(STEPS[i], tokens(STEPS[i], 0))
    return found.passages()


def test_passages_are_the_strongest_and_some_of_every_strength():
    some = crosscoder()
    plain = loops(some, STEPS)
    peak = np.zeros((16, LATENTS))
    for (row, _), codes in plain.items():
        peak[row] = np.maximum(peak[row], codes.numpy())
    found = shown(some, [0, 1], keep=16)
    ids = torch.cat([one.ids for one in STEPS])
    keys = np.concatenate([one.key for one in STEPS])
    for j in (3, 0, LATENTS - 1):
        mine = [one for one in found if one.latent == j]
        top = [one for one in mine if one.bin == TOP]
        assert [one.score for one in top] == sorted((one.score for one in top), reverse=True)
        firing = set(np.flatnonzero(peak[:, j] > 0).tolist())
        assert {one.row for one in mine if one.bin == SILENT} == set(range(16)) - firing
        assert {one.row for one in top} == firing
        between = [one for one in mine if one.bin not in (TOP, SILENT)]
        assert {one.row for one in between} == firing
        for one in between:
            low, high = (float(part) for part in one.bin.split("-"))
            assert low <= one.score / peak[:, j].max() < high + (high == 1)
        for one in mine:
            assert one.score == pytest.approx(peak[one.row, j], rel=1e-5)
            assert one.key == int(keys[one.row])
            assert one.slice == (one.row if one.row < 9 else one.row - 9) % 2
            assert list(one.ids) == ids[one.row, one.start : one.start + len(one.ids)].tolist()
            assert len(one.ids) <= WINDOW
            codes = [float(plain[one.row, p][j]) if (one.row, p) in plain else 0.0 for p in range(LONGEST)]
            assert one.values == pytest.approx(codes[one.start : one.start + len(one.ids)], rel=1e-5)
            assert max(one.values) == pytest.approx(one.score, rel=1e-5)
    assert {one.bin for one in found if one.latent == LATENTS - 1} == {SILENT}
    # A silent text is not always shown from its beginning, as no other is.
    assert len({one.start for one in found if one.latent == LATENTS - 1}) > 3


def test_passages_do_not_depend_on_the_order_and_merge():
    some = crosscoder()
    assert shown(some, [0, 1]) == shown(some, [1, 0])
    assert shown(some, [0, 1, 0]) == shown(some, [0, 1])
    firings = Firings(some, "both")
    for one in STEPS:
        firings.see(tokens(one, 0))
    which = np.array([3, 0, LATENTS - 1])
    parts = [Extremes(some, "both", which, firings.largest[which], keep=2, window=WINDOW) for _ in STEPS]
    for part, one in zip(parts, STEPS, strict=True):
        part.see(one, tokens(one, 0))
    parts[1].merge(parts[0])
    assert parts[1].passages() == shown(some, [0, 1])
    with pytest.raises(BadInput, match="largest"):
        Extremes(some, "both", which, firings.largest)


def test_a_text_without_a_token_that_counts_is_not_silent():
    some = crosscoder()
    found = Extremes(some, "both", np.array([LATENTS - 1]), np.array([1.0]), keep=16, window=WINDOW)
    for one in STEPS:
        found.see(one, tokens(one, 0, only=lambda keys: held_out(keys, 0.5)))
    held = {row for one in STEPS for row in one.row[torch.from_numpy(held_out(one.key, 0.5))].tolist()}
    assert {one.row for one in found.passages()} == held


def test_near_duplicates_are_folded():
    some, one = crosscoder(), step(6, 7)
    base, tuned = (side.clone() for side in one.hidden(0))
    ids = one.ids.clone()
    keep = torch.arange(LONGEST).expand(6, LONGEST) < LONGEST - 1
    codes = some.codes(torch.stack([base.flatten(0, 1), tuned.flatten(0, 1)], 1)).view(6, LONGEST, LATENTS)
    j = int((codes[:, 1:-1] > 0).sum((0, 1)).argmax())
    source = int(codes[:, 1:-1, j].amax(1).argmax())
    for i in range(6):
        if i != source and i % 2 == 0:
            base[i], tuned[i], ids[i] = base[source], tuned[source], ids[source]
            ids[i, 0] = 17 + i
    twins = [i for i in range(6) if i != source and i % 2 == 0]
    same = replace(one, ids=ids, keep=keep, hidden=lambda layer: (base, tuned))
    found = Extremes(some, "both", np.array([j]), np.array([99.0]), keep=6, window=LONGEST)
    found.see(same, tokens(same, 0))
    top = [one for one in found.passages() if one.bin == TOP]
    assert top[0].folded == len(twins)
    assert len([one for one in top if one.score == top[0].score]) == 1
    assert len(LEVELS) == 4
