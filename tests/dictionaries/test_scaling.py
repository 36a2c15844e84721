"""Latent scaling against dense least squares in float64, cut and merged in any way, and with the peer's wrong input."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Literal

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.figures import fieller
from finetrace.dictionaries.latents import Firings, latent_table, pick
from finetrace.dictionaries.reading import Tokens, held_out, inputs
from finetrace.dictionaries.scaling import TARGETS, Betas, Scaling
from finetrace.stats import wilson
from finetrace.stats.bootstrap import FloatArray

D, LATENTS, PER_TEXT = 6, 9, 5
Read = Literal["both", "difference"]


def made(models: int, seed: int = 0, code_norm: str = "none") -> Dictionary:
    g = torch.Generator().manual_seed(seed)
    return Dictionary(
        encoder=torch.randn(models, D, LATENTS, generator=g),
        encoder_bias=0.3 * torch.randn(LATENTS, generator=g),
        decoder=torch.randn(models, LATENTS, D, generator=g),
        decoder_bias=torch.randn(models, D, generator=g),
        mean=torch.randn(models, D, generator=g),
        scale=torch.rand(models, generator=g) + 0.5,
        owner=torch.zeros(LATENTS, dtype=torch.int8),
        threshold=0.8,
        kind="batch_topk",
        code_norm=code_norm,  # pyright: ignore[reportArgumentType]
    )


def read(base: Tensor, tuned: Tensor, *, seed: int = 5, per_text: int = PER_TEXT) -> Tokens:
    """Rows cut into texts of `per_text` tokens, with keys as random as hashes are."""
    texts = -(-len(base) // per_text)
    place = torch.arange(len(base))
    return Tokens(
        base,
        tuned,
        place // per_text,
        place % per_text,
        np.random.default_rng(seed).integers(0, 2**64, texts, dtype=np.uint64),
        np.zeros(texts, np.int64),
        np.arange(texts),
    )


def states(rows: int = 300, mean: float = 2.0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    base = torch.randn(rows, D, generator=g) + mean
    return base, base + 0.8 * torch.randn(rows, D, generator=g) + 0.2


def scaled(dictionary: Dictionary, reads: Read, *some: Tokens, fewest: int = 5) -> Betas:
    found = Scaling(dictionary, reads)
    for one in some:
        found.see(one)
    return found.betas(fewest=fewest)


def least_squares(codes: Tensor, direction: Tensor, target: Tensor) -> float:
    """The b for which b * codes[:, None] * direction is nearest to target [row, d]; target may be [row, d] of any kind."""
    design = (codes.double()[:, None] * direction.double()).reshape(-1, 1).numpy()
    return float(np.linalg.lstsq(design, target.double().reshape(-1).numpy(), rcond=None)[0][0])


def parts(dictionary: Dictionary, codes: Tensor) -> list[Tensor]:
    if dictionary.code_norm != "decoupled":
        return [codes] * dictionary.models
    norms = dictionary.decoder.norm(dim=2)
    return [torch.where(codes * own > dictionary.threshold, codes, 0.0) for own in norms]


@pytest.mark.parametrize("code_norm", ["crosscoder", "decoupled"])
def test_a_crosscoders_betas_are_those_of_dense_least_squares(code_norm: str):
    some = made(2, code_norm=code_norm)
    base, tuned = states()
    found = scaled(some, "both", read(base, tuned))
    x = inputs(some, base, tuned, "both")
    z, codes = some.normalise(x), some.codes(x)
    compared = 0
    for m, n, j in product(range(2), range(2), range(LATENTS)):
        if found.tokens[j] < 5:
            continue
        part = parts(some, codes)[m].double()
        decoder, bias = some.decoder[m].double(), some.decoder_bias[m].double()
        without = part.clone()
        without[:, j] = 0.0
        y = z[:, m].double()
        wanted = {
            "activation": y,
            "activation_less_bias": y - bias,
            "reconstruction": part @ decoder + bias,
            "error": y - (without @ decoder + bias),
        }
        for target in TARGETS:
            dense = least_squares(codes[:, j], some.decoder[n, j], wanted[target])
            assert found.value[target][m, n, j] == pytest.approx(dense, rel=1e-4, abs=1e-5)
            compared += 1
    assert compared > 80


@pytest.mark.parametrize("mean", [2.0, 500.0])
def test_a_dictionary_of_differences_is_given_differences(mean: float):
    some = made(1)
    base, tuned = states(mean=mean)
    found = scaled(some, "difference", read(base, tuned))
    change = (tuned - base)[:, None]
    z, codes = some.normalise(change)[:, 0].double(), some.codes(change)
    wrong = some.codes(tuned[:, None])
    scale, decoder, bias = some.scale[0].double(), some.decoder[0].double(), some.decoder_bias[0].double()
    apart = []
    for j in range(LATENTS):
        if found.tokens[j] < 5:
            continue
        without = codes.double()
        without[:, j] = 0.0
        sides = [(side.double() * scale, side.double().mean(0) * scale) for side in (base, tuned)]
        for m, (y, own) in enumerate(sides):
            for target, rows in zip(TARGETS[:2], (y, y - own), strict=True):
                dense = least_squares(codes[:, j], some.decoder[0, j], rows)
                assert found.value[target][m, 0, j] == pytest.approx(dense, rel=1e-4, abs=2e-4)
            assert np.isnan(found.value["error"][m, 0, j])
        wanted = {
            "activation": z,
            "activation_less_bias": z - bias,
            "reconstruction": codes.double() @ decoder + bias,
            "error": z - (without @ decoder + bias),
        }
        for target in TARGETS:
            dense = least_squares(codes[:, j], some.decoder[0, j], wanted[target])
            assert found.at(target, "difference", "own")[0][j] == pytest.approx(dense, rel=1e-3, abs=1e-3)
        # The peer encodes the tuned state instead of the difference: its betas are of other tokens altogether.
        peer = least_squares(wrong[:, j], some.decoder[0, j], sides[1][0])
        apart.append(abs(peer - float(found.value["activation"][1, 0, j])) > 0.1)
    assert len(apart) > 4
    assert sum(apart) > len(apart) / 2
    assert np.isnan(found.p["activation"]).all()


def test_a_dictionary_refuses_what_it_does_not_read():
    base, tuned = states(10)
    with pytest.raises(BadInput, match="cannot read 'both'"):
        inputs(made(1), base, tuned, "both")
    with pytest.raises(BadInput, match="cannot read 'difference'"):
        inputs(made(2), base, tuned, "difference")
    torch.testing.assert_close(inputs(made(1), base, tuned, "difference")[:, 0], tuned - base)


@pytest.mark.parametrize(("models", "reads"), [(2, "both"), (1, "difference")])
def test_parts_merged_are_the_whole(models: int, reads: Read):
    some = made(models)
    base, tuned = states(mean=30.0)
    whole = read(base, tuned)
    cuts = [slice(0, 40), slice(40, 45), slice(45, 300)]
    shards = [
        replace(
            whole,
            base=base[cut],
            tuned=tuned[cut],
            text=whole.text[cut],
            position=whole.position[cut],
        )
        for cut in cuts
    ]
    at_once = scaled(some, reads, whole)
    merged = Scaling(some, reads)
    for shard in shards:
        one = Scaling(some, reads)
        one.see(shard)
        merged.merge(one)
    found = merged.betas(fewest=5)
    assert merged.seen == 300
    np.testing.assert_array_equal(found.tokens, at_once.tokens)
    for target in TARGETS:
        for ours, theirs in (
            (found.value, at_once.value),
            (found.high, at_once.high),
            (found.ratio_low, at_once.ratio_low),
            (found.p, at_once.p),
        ):
            np.testing.assert_allclose(ours[target], theirs[target], rtol=2e-4, atol=2e-5)


def planted(seed: int, texts: int = 60, noise: float = 0.3) -> tuple[Dictionary, Tokens]:
    """Sparse codes that write into both models (latents 0 to 2), into the tuned one alone (3 to 5), or into the tuned one
    alone as far as the dictionary knows, while the base holds them too (6 to 8: complete shrinkage)."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.linalg.qr(torch.randn(LATENTS, LATENTS, generator=g)).Q
    rows = texts * 12
    of_text = (torch.rand(texts, 1, LATENTS, generator=g) < 0.5).float().expand(texts, 12, LATENTS)
    on = (torch.rand(rows, LATENTS, generator=g) < 0.4).float() * of_text.reshape(rows, LATENTS)
    codes = on * (1 + torch.rand(rows, LATENTS, generator=g))
    written = truth.clone()
    written[3:6] = 0.0
    base = codes @ written + noise * torch.randn(rows, LATENTS, generator=g)
    tuned = codes @ truth + noise * torch.randn(rows, LATENTS, generator=g)
    known = truth.clone()
    known[3:] = 0.0
    dictionary = Dictionary(
        encoder=torch.stack([torch.zeros_like(truth), truth.T]),
        encoder_bias=torch.zeros(LATENTS),
        decoder=torch.stack([known, truth]),
        decoder_bias=torch.zeros(2, LATENTS),
        mean=torch.zeros(2, LATENTS),
        scale=torch.ones(2),
        owner=torch.zeros(LATENTS, dtype=torch.int8),
        threshold=0.9,
        kind="batch_topk",
    )
    return dictionary, read(base, tuned, seed=seed, per_text=12)


def test_the_errors_ratio_tells_shrinkage_from_a_latent_of_the_tuned_model_alone():
    dictionary, rows = planted(0)
    assert dictionary.tags()[3:] == ["tuned-only"] * 6
    found = scaled(dictionary, "both", rows, fewest=20)
    along = found.directions.index("tuned")
    ratio, low, high = (part["error"][along] for part in (found.ratio, found.ratio_low, found.ratio_high))
    assert (high[3:6] < 0.3).all()
    assert (low[6:] > 0.7).all()
    assert (low < ratio).all()
    assert (ratio < high).all()
    assert (found.p["error"][along][3:6] < 0.01).all()
    assert (found.p["error"][along][6:] > 0.01).all()
    assert (found.ratio_high["reconstruction"][along][3:6] < 0.3).all()


def test_the_table_confirms_a_latent_of_the_tuned_model_alone_and_names_a_shrunk_one():
    dictionary, rows = planted(0)
    firings = Firings(dictionary, "both")
    firings.see(rows)
    table = latent_table(dictionary, firings, scaled(dictionary, "both", rows, fewest=20))
    assert np.flatnonzero(np.asarray(table.data["confirmed"])).tolist() == [3, 4, 5]
    assert np.flatnonzero(np.asarray(table.data["shrunk"])).tolist() == [6, 7, 8]
    assert sorted(pick(table, 3).tolist()) == [3, 4, 5]
    assert list(latent_table(dictionary, firings, scaled(dictionary, "both")).data) == list(table.data)
    change = latent_table(made(1), Firings(made(1), "difference"), scaled(made(1), "difference"))
    ratios = [name for name in change.data if name.startswith("ratio") and not name.endswith(("low", "high"))]
    assert ratios == ["ratio_activation_less_bias"]
    assert "beta_error_difference" in change.data


def test_a_model_and_itself_hold_every_latent_alike():
    base, _ = states()
    found = scaled(replace(made(2), mean=torch.zeros(2, D), scale=torch.ones(2)), "both", read(base, base))
    known = np.isfinite(found.ratio["activation"])
    assert known.sum() > 8
    for part in (found.ratio, found.ratio_low, found.ratio_high):
        np.testing.assert_allclose(part["activation"][known], 1.0, atol=1e-6)
    np.testing.assert_array_equal(found.p["activation"][:, found.tokens >= 5], 1.0)


def test_the_ends_of_fiellers_interval_are_where_a_t_test_says_0():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(0.5, 1.0, (12, 40)), rng.normal(2.0, 1.0, (12, 40))
    bottom[8:, 20:] = top[8:, 20:] = 0.0
    for end in fieller(top, bottom):
        known = np.isfinite(end)
        assert known.sum() > 30
        for j in np.flatnonzero(known):
            groups = 12 if j < 20 else 8
            rest = (top[:, j] - end[j] * bottom[:, j])[:groups]
            assert stats.ttest_1samp(rest, 0.0)[1] == pytest.approx(0.05, abs=1e-6)


def test_the_ratios_interval_holds_the_truth_as_often_as_it_says():
    draws = [planted(seed, texts=40) for seed in range(60)]
    held, asked = 0, 0
    for dictionary, rows in draws:
        found = scaled(dictionary, "both", rows, fewest=20)
        low, high = found.ratio_low["activation"][1], found.ratio_high["activation"][1]
        # Latents 6 to 8 are in both models alike but for the choice of tokens by the tuned one's noise: 3 to 5 are at 0.
        held += int(((low[3:6] <= 0) & (high[3:6] >= 0)).sum())
        asked += int(np.isfinite(low[3:6]).sum())
    found_rate = wilson(held, asked)
    assert asked > 150
    assert found_rate is not None
    assert found_rate.high > 0.93


def test_nothing_is_said_of_a_ratio_whose_denominator_may_be_0():
    dictionary, rows = planted(1)
    swapped = Tokens(rows.tuned, rows.base, rows.text, rows.position, rows.keys, rows.slices, rows.rows)
    mirror = replace(dictionary, encoder=dictionary.encoder.flip(0), decoder=dictionary.decoder.flip(0))
    found = scaled(mirror, "both", swapped)
    # Along the base's own decoder, the tuned model holds nothing of latents 3 to 5.
    assert np.isnan(found.ratio["error"][0][3:6]).all()
    assert np.isnan(found.ratio_low["error"][0][3:6]).all()
    assert np.isfinite(found.at("error", "base", "base")[0][3:6]).all()
    # Nor along the tuned decoder, which is 0 there.
    assert np.isnan(found.at("error", "tuned", "tuned")[0][3:6]).all()


def test_too_few_tokens_or_groups_say_nothing():
    some = made(2)
    base, tuned = states()
    assert np.isnan(scaled(some, "both", read(base, tuned), fewest=10_000).value["error"]).all()
    one_text = scaled(some, "both", read(base, tuned, per_text=300))
    assert (one_text.groups <= 1).all()
    assert np.isnan(one_text.value["error"]).all()
    empty = scaled(some, "both")
    assert (empty.tokens == 0).all()
    assert all(np.isnan(array).all() for array in (*empty.value.values(), *empty.ratio.values()))
    with pytest.raises(BadInput, match="groups"):
        Scaling(some, "both", groups=2)


def test_few_active_codes_and_many_take_the_same_products():
    sparse = replace(made(2), threshold=27.0)
    base, tuned = states(20_000)
    rows = read(base, tuned)
    few = scaled(sparse, "both", rows)
    x = inputs(sparse, base, tuned, "both")
    codes = sparse.codes(x)
    share = float((codes > 0).float().mean())
    assert 0 < share < 1 / 250
    j = int(few.tokens.argmax())
    dense = least_squares(codes[:, j], sparse.decoder[1, j], sparse.normalise(x)[:, 0])
    assert few.value["activation"][0, 1, j] == pytest.approx(dense, rel=1e-4)


def test_texts_are_held_out_by_what_they_hold():
    keys = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    held = held_out(keys, 0.1)
    assert held.mean() == pytest.approx(0.1, abs=0.01)
    assert (held_out(keys[::-1], 0.1) == held[::-1]).all()
    assert held_out(keys, 1.0).all()
    assert not held_out(keys, 0.0).any()
    groups: FloatArray = np.bincount((keys[held] % 32).astype(np.int64), minlength=32).astype(np.float64)
    assert groups.min() > 0.5 * groups.mean()
    with pytest.raises(BadInput, match="share"):
        held_out(keys, 1.5)
