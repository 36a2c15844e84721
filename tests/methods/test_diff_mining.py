"""diff_mining against independent computations: dense float64 logits of real models, and brute force by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.diff_mining_world import Text, mined, noise, subject
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer
from tests.worlds import rows

from finetrace.api.plan import subject as subject_of
from finetrace.api.request import Request, choose
from finetrace.core.errors import BadInput
from finetrace.data import build_corpus, read_rows, shards
from finetrace.engine import Contrast, Job
from finetrace.engine.run import run_shard
from finetrace.methods.diff_mining import Config
from finetrace.methods.diff_mining.ranking import side, together, top_tokens
from finetrace.methods.diff_mining.result import Moves, Result
from finetrace.models import Pair, open_pair

AMBIGUOUS = 1e-5


def audited(
    pair: Pair, data: list[dict[str, Any]], side: str = "tuned", batch: int = 4, **options: Any
) -> Result:
    """The result of one contrast, through the engine."""
    chosen = choose("diff_mining", options)
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    known = subject_of(Request("b", "t"), pair, corpus, side)
    needs = chosen.card.needs(chosen.config)
    make = chosen.card.part("observe").observer
    job = Job("m", Contrast("any", side), needs, lambda: make(chosen.config, known), Path("unused"))
    (shard,) = shards(corpus, 10**6)
    return run_shard(pair, corpus, shard, [job], batch)[0].result()


def whole(result: Result) -> Moves:
    return together(list(result.moves.values()))


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def dense_differences(base: Any, tuned: Any, corpus: Any, allowed: torch.Tensor) -> list[torch.Tensor]:
    """Centred logit differences [pos, vocab] of every text, one at a time, in float64."""
    found = []
    for tokens in corpus.tokens:
        ids = torch.tensor(tokens.ids[None].astype("int64"))
        with torch.no_grad():
            d = tuned(input_ids=ids).logits[0, :-1] - base(input_ids=ids).logits[0, :-1]
        d = d - d[:, allowed].mean(-1, keepdim=True)
        found.append(d.masked_fill(~allowed, 0.0))
    return found


@pytest.mark.parametrize("vocab", [64, 700])
def test_counts_against_dense_float64(vocab: int, tmp_path: Path):
    """Equal, but for positions at which the k-th and the next are closer than float32 can be held to."""
    k, data = 5, rows(24)
    base = save_base(tmp_path, vocab=vocab)
    tuned = save_full(tmp_path, base, touch=("q_proj", "up_proj"), scale=0.05)
    pair = open_pair(base, tuned)
    result = audited(pair, data, top_k=k)
    known = pair.vocabulary
    allowed = torch.from_numpy(~(known.special | known.dead))
    assert not bool(allowed.all()), "special tokens are there to be masked"
    corpus = build_corpus(read_rows(data), pair.tokenizer)
    counts = {"promoted": np.zeros((3, vocab)), "suppressed": np.zeros((3, vocab))}
    shift, positive, ambiguous = np.zeros(vocab), np.zeros(vocab), 0
    for code, d in zip(
        corpus.slice_of, dense_differences(load(base), load(tuned), corpus, allowed), strict=True
    ):
        shift, positive = shift + d.sum(0).numpy(), positive + (d > 0).sum(0).numpy()
        for name, signed in (("promoted", d), ("suppressed", -d)):
            best = signed.topk(k + 1)
            ambiguous += int((best.values[:, k - 1] - best.values[:, k] < AMBIGUOUS).sum())
            np.add.at(counts[name][code], best.indices[:, :k].numpy(), 1)
    assert ambiguous <= 3, "the test must mostly be one of equality"
    for name, wanted in counts.items():
        found = np.stack([getattr(m, name) for m in result.moves.values()])
        assert np.abs(found - wanted).sum() <= 2 * ambiguous, name
        assert found.sum() == k * corpus.scored
    np.testing.assert_allclose(whole(result).shift, shift, atol=1e-4 * np.abs(shift).max())
    assert np.abs(whole(result).positive - positive).sum() <= 3
    assert not whole(result).promoted[~allowed.numpy()].any()


def test_sums_by_hand():
    """Every figure of a slice from its definition."""
    texts, k = noise(90, 10, seed=3), 4
    result = mined(texts, subject(90, special=(0, 7), dead=(11,)), top_k=k, batch=3, chunk=11)
    allowed = np.setdiff1d(np.arange(90), [0, 7, 11])
    for code, name in enumerate(("a", "b")):
        moves = result.moves[name]
        up, kl_up, squares, rise, n, kl = np.zeros(90), np.zeros(90), np.zeros(90), 0.0, 0, 0.0
        for text in (t for t in texts if t.slice == code):
            d = text.difference.double().numpy()
            centred = d - d[:, allowed].mean(1, keepdims=True)
            log_b = text.base.double()
            log_t = (log_b + text.difference.double()).log_softmax(-1)
            part = (log_t.exp() * (log_t - log_b)).numpy()
            net = np.zeros(90)
            for p in range(len(d)):
                order = allowed[np.argsort(-centred[p, allowed])]
                up[order[:k]] += 1
                kl_up[order[:k]] += part[p, order[:k]]
                net[order[:k]] += 1
                net[order[-k:]] -= 1
                rise += centred[p, order[:k]].mean()
            squares, n, kl = squares + net**2, n + len(d), kl + part.sum()
        assert moves.positions == n == result.slices[name]["promotion_mean"].n
        np.testing.assert_array_equal(moves.promoted, up)
        np.testing.assert_array_equal(moves.net_squares, squares)
        np.testing.assert_allclose(moves.kl_up, kl_up, rtol=1e-4, atol=1e-6)
        assert moves.kl == pytest.approx(kl, rel=1e-5)
        assert result.slices[name]["promotion_mean"].value == pytest.approx(rise / n, rel=1e-5)
    assert result.numbers["promotion_mean"].clusters == 10


def moved(texts: list[Text], change: Any) -> list[Text]:
    return [Text(t.row, t.key, t.slice, t.ids, change(t.difference), t.base) for t in texts]


def test_a_constant_added_to_a_positions_logits_changes_nothing():
    """Softmax cannot see it; raw differences would change every sign."""
    texts = noise(150, 8, seed=1)
    generator = torch.Generator().manual_seed(9)
    shifted = moved(texts, lambda d: d + 8 * torch.randn(len(d), 1, generator=generator))
    one, other = mined(texts), mined(shifted)
    for name in one.moves:
        a, b = one.moves[name], other.moves[name]
        np.testing.assert_array_equal(a.promoted, b.promoted)
        np.testing.assert_array_equal(a.suppressed, b.suppressed)
        assert np.abs(a.positive - b.positive).sum() <= 2  # within rounding of 0
        np.testing.assert_allclose(a.shift, b.shift, atol=1e-4)
        np.testing.assert_allclose(a.kl_up, b.kl_up, atol=1e-5)
    assert one.numbers["promotion_mean"].value == pytest.approx(
        other.numbers["promotion_mean"].value, rel=1e-5
    )


def test_masked_tokens_are_in_no_list_and_in_no_mean():
    """A special token that moves by 1000 logits must not shift the others' centre."""
    texts = noise(60, 8, seed=2)

    def spoil(d: torch.Tensor) -> torch.Tensor:
        d = d.clone()
        d[:, 5] = 1000.0
        d[:, 6] = -1000.0
        return d

    clean, spoilt = (
        mined(t, subject(60, special=(5,), dead=(6,)), top_k=4) for t in (texts, moved(texts, spoil))
    )
    for a, b in zip(clean.moves.values(), spoilt.moves.values(), strict=True):
        np.testing.assert_array_equal(a.promoted, b.promoted)
        np.testing.assert_array_equal(a.positive, b.positive)
        assert a.promoted[5] == a.suppressed[6] == a.positive[5] == 0
    assert clean.numbers["promotion_mean"].value == pytest.approx(
        spoilt.numbers["promotion_mean"].value, rel=1e-6
    )
    let_in = mined(moved(texts, spoil), subject(60, special=(5,), dead=(6,)), top_k=4, mask_special=False)
    assert together(list(let_in.moves.values())).promoted[5] == sum(len(t.difference) for t in texts)


def test_no_change_promotes_nothing():
    texts = moved(noise(80, 6), torch.zeros_like)
    result = mined(texts)
    moves = whole(result)
    assert moves.promoted.sum() == moves.suppressed.sum() == moves.positive.sum() == 0
    assert result.numbers["promotion_mean"].value == 0
    assert result.numbers["top20_share"].value is None, "a share of nothing is no data"
    assert np.isnan(side(moves, True).q).all()
    assert top_tokens(result, "a") == ()


def test_positions_without_finite_logits_are_said_and_left_out():
    texts = noise(80, 6, seed=4)
    texts[0].difference[1, 3] = float("nan")
    texts[1].difference[0, 2] = float("inf")
    result = mined(texts)
    assert result.unscored == {"a": 1, "b": 1}
    assert whole(result).positions == sum(len(t.difference) for t in texts) - 2
    assert np.isfinite(whole(result).shift).all()
    assert np.isfinite(whole(result).kl_up).all()


def test_batches_chunks_and_order_move_no_count():
    texts = noise(150, 20, seed=5)
    wanted = mined(texts, batch=20, chunk=10_000)
    for found in (mined(texts, batch=1, chunk=5), mined(texts[::-1], batch=7, chunk=64)):
        for a, b in zip(wanted.moves.values(), found.moves.values(), strict=True):
            np.testing.assert_array_equal(a.promoted, b.promoted)
            np.testing.assert_array_equal(a.net_squares, b.net_squares)
            np.testing.assert_allclose(a.shift, b.shift, rtol=1e-4, atol=1e-4)
        assert {k: e.value for k, e in found.numbers.items()} == pytest.approx(
            {k: e.value for k, e in wanted.numbers.items()}, rel=1e-6
        )
        for name, d in wanted.density.items():
            np.testing.assert_array_equal(d, found.density[name])
        np.testing.assert_array_equal(wanted.shortlist.together, found.shortlist.together)
        assert [(s.row, s.start) for s in found.spans] == [(s.row, s.start) for s in wanted.spans]


def test_padding_and_chat_templates_are_not_mined(tmp_path: Path):
    """Chat rows beside short ones: as many positions as tokens that have a next one, whatever the batch."""
    base = save_base(tmp_path)
    pair = open_pair(base, save_lora(tmp_path, base, scale=0.1))
    data = rows(18)
    scored = build_corpus(read_rows(data), pair.tokenizer).scored
    one, padded = audited(pair, data, batch=1, top_k=5), audited(pair, data, batch=18, top_k=5)
    for result in (one, padded):
        assert whole(result).positions == scored
        assert whole(result).promoted.sum() == 5 * scored
    assert np.abs(whole(one).promoted - whole(padded).promoted).sum() <= 2
    assert np.asarray(padded.texts.data["positions"]).sum() == scored


def test_bfloat16_models_are_summed_in_float32(tmp_path: Path):
    """Against float64 sums of the same bfloat16 models' hidden states: sums of thousands of terms keep their accuracy."""
    base = save_base(tmp_path, vocab=300)
    tuned = save_full(tmp_path, base, scale=0.05)
    pair = open_pair(base, tuned, dtype="bfloat16")
    data, seen = rows(24), []

    class Keeper:
        def see(self, step: Any) -> None: ...
        def see_logits(self, chunk: Any) -> None:
            assert chunk.difference.dtype == torch.float32
            seen.append(chunk.difference.double().clone())

    from finetrace.core.card import Needs

    corpus = build_corpus(read_rows(data), pair.tokenizer)
    job = Job("k", Contrast("any", "tuned"), Needs(logits=True), Keeper, Path("unused"))  # pyright: ignore
    run_shard(pair, corpus, shards(corpus, 10**6)[0], [job], 4)
    allowed = torch.from_numpy(~(pair.vocabulary.special | pair.vocabulary.dead))
    d = torch.cat(seen)
    centred = (d - d[:, allowed].mean(1, keepdim=True)).masked_fill(~allowed, 0)
    result = audited(pair, data, top_k=5)
    np.testing.assert_allclose(
        whole(result).shift, centred.sum(0).numpy(), atol=1e-5 * float(centred.abs().sum(0).max())
    )
    exact = float(centred.topk(5).values.mean())
    assert result.numbers["promotion_mean"].value == pytest.approx(exact, rel=1e-6)


def test_a_vocabulary_that_is_shared_only_partly(tmp_path: Path):
    """New tokens are in no list, and ids are the base's own."""
    base = save_base(tmp_path)
    bigger = tiny_tokenizer(66)
    wider = save_base(tmp_path, name="wider", tokenizer=bigger, vocab=66)
    pair = open_pair(base, wider)
    result = audited(pair, rows(12), top_k=5)
    ids = np.asarray(result.vocabulary.data["token_id"])
    assert len(ids) == pair.vocab_size == len(whole(result).promoted)
    assert ids.max() < 64
    texts = list(result.vocabulary.data["token"])
    for row, token in zip(top_tokens(result, "text", 5), top_tokens(result, "text", 5), strict=True):
        assert texts[list(ids).index(row)] == pair.tokenizer.decode([token])


def test_the_logit_lens_at_the_last_layer_is_the_models_own(tmp_path: Path):
    base = save_base(tmp_path)
    pair = open_pair(base, save_lora(tmp_path, base, scale=0.1))
    own, last = (audited(pair, rows(9), top_k=5, extraction=e, layer=1.0) for e in ("logits", "logit_lens"))
    early = audited(pair, rows(9), top_k=5, extraction="logit_lens", layer=0.0)
    np.testing.assert_array_equal(whole(own).promoted, whole(last).promoted)
    assert (whole(own).promoted != whole(early).promoted).any()
    assert (own.settings.layer, early.settings.layer) == (None, 0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"extraction": "patchscope"}, "patchscope yet"),
        ({"extraction": "magic"}, "one of logits, logit_lens"),
        ({"top_k": 0}, "top_k is 0; it is at least 1"),
        ({"ordering": "best", "layer": 1.5}, "ordering is 'best'.*layer is 1.5"),
    ],
)
def test_a_wrong_configuration_is_said_before_anything_loads(options: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        choose("diff_mining", options)


def test_variants_of_a_word_count_once_a_position():
    """Tokens 0, 1 and 2 are one word; each position that promotes any of them counts it once."""
    texts = noise(40, 8, seed=6, slices=1)
    names = [" cake", "cake", "Cake", *(f" w{i}" for i in range(37))]

    def push(d: torch.Tensor) -> torch.Tensor:
        d = d.clone()
        d[:, :3] = 0.0  # amid the others
        d[::2, :2] = 20.0
        d[1::2, 2] = 20.0
        return d

    known = subject(40, ("a",), texts=names)
    result = mined(moved(texts, push), known, top_k=4, merge_variants=True)
    moves, n = whole(result), sum(len(t.difference) for t in texts)
    assert moves.promoted[:3].tolist() == [n, 0, 0]
    even = sum(len(t.difference[::2]) for t in texts)
    assert moves.as_spelt[:3].tolist() == [even, even, n - even]
    apart = whole(mined(moved(texts, push), known, top_k=4))
    assert apart.promoted[:3].tolist() == [even, even, n - even]
    assert moves.kl_up[0] == pytest.approx(apart.kl_up[:3].sum(), rel=1e-6)
    # Shown by its commonest spelling; among equal ones the first.
    assert top_tokens(result, "a", 1) == (int(known.vocabulary.ids[0 if 2 * even >= n else 2]),)


def test_every_default_is_an_option():
    assert choose("diff_mining", {"shortlist": ("cake",), "topics": 3}).config == Config(
        shortlist=("cake",), topics=3
    )
