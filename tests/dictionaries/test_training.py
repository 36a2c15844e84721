"""Training goes on where it was killed, reads rows as they come, and says what is wrong with them."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dictionaries.planted import planted, shuffled
from torch import Tensor

from finetrace.core.errors import BadInput, ConfigErrors, DataError
from finetrace.dictionaries.adam import Learnt
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.fit import fit
from finetrace.dictionaries.start import scale_of
from finetrace.dictionaries.trainer import Trainer
from finetrace.dictionaries.training import Trained, Training, train

D, ROWS = 32, 600
SMALL = Training(latents=48, k=4, batch=64, steps=40, dtype="float32")


@pytest.fixture(scope="module")
def two() -> Tensor:
    return planted(2, ROWS).rows


@pytest.fixture(scope="module")
def one() -> Tensor:
    return planted(1, ROWS).rows


def saved(found: Trained, folder: Path) -> bytes:
    found.dictionary.save(folder / "dictionary")
    return (folder / "dictionary").read_bytes()


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    "changes", [{}, {"dtype": "bfloat16", "delta": 1.0, "dead_after": 64}, {"kind": "relu"}]
)
def test_a_killed_training_ends_byte_identical(changes: dict, two: Tensor, tmp_path: Path):
    training, journal = replace(SMALL, **changes), tmp_path / "journal"
    whole = train(shuffled(two), (2, D), training, two[:50])

    def kill(progress):
        if progress.step == 27:
            raise Killed

    with pytest.raises(Killed):
        train(shuffled(two), (2, D), training, two[:50], watch=kill, journal=journal)
    steps: list[int] = []
    # The same rows of an epoch, in other portions.
    again = train(
        shuffled(two, 100), (2, D), training, two[:50], lambda p: steps.append(p.step), journal=journal
    )
    assert steps[0] == 27
    assert (again.log, again.checked, again.rows, again.epochs) == (
        whole.log,
        whole.checked,
        whole.rows,
        whole.epochs,
    )
    assert saved(again, tmp_path) == saved(whole, tmp_path)


def test_a_seed_decides_everything(two: Tensor, tmp_path: Path):
    first, again = (train(shuffled(two), (2, D), SMALL) for _ in range(2))
    assert saved(first, tmp_path) == saved(again, tmp_path)
    other = train(shuffled(two), (2, D), replace(SMALL, seed=1))
    assert saved(first, tmp_path) != saved(other, tmp_path)


def test_a_journal_of_something_else_is_not_gone_on_from(two: Tensor, tmp_path: Path):
    journal = tmp_path / "journal"
    train(shuffled(two), (2, D), SMALL, journal=journal)
    with pytest.raises(BadInput, match="another training"):
        train(shuffled(two), (2, D), replace(SMALL, k=5), journal=journal)
    with pytest.raises(BadInput, match="other rows"):
        train(shuffled(two + 0.1), (2, D), SMALL, journal=journal)
    journal.write_bytes(journal.read_bytes()[:-5])
    with pytest.raises(BadInput, match="cut short"):
        train(shuffled(two), (2, D), SMALL, journal=journal)


def test_rows_are_read_as_they_come_and_let_go():
    alive: list[weakref.ref] = []
    most = pulled = 0

    def stream(epoch: int):
        nonlocal most, pulled
        g = torch.Generator().manual_seed(epoch)
        for _ in range(1000):
            some = torch.randn(50, 1, D, generator=g)
            alive.append(weakref.ref(some))
            pulled += 50
            gc.collect(0)
            most = max(most, sum(ref() is not None for ref in alive))
            yield some

    training = replace(SMALL, sample=128)
    found = train(stream, (1, D), training)
    assert found.rows == training.steps * training.batch
    assert pulled <= 128 + found.rows + 2 * 50
    assert most <= 4


def test_what_is_learnt_keeps_its_form(two: Tensor):
    training = replace(SMALL, exclusive=0.25, delta=1.0)
    made = train(shuffled(two), (2, D), training).dictionary
    owner = made.owner
    assert owner.bincount().tolist() == [36, 6, 6]
    assert float(made.decoder[1][owner == 1].abs().max()) == 0
    assert float(made.decoder[0][owner == 2].abs().max()) == 0
    assert {made.tags()[j] for j in (owner == 2).nonzero().flatten().tolist()} == {"tuned-only"}


def test_it_begins_with_the_decoders_transpose_the_same_for_both_models(two: Tensor):
    first: list[Dictionary] = []
    # A rate of nearly nothing: what comes out is what was put in.
    made = train(shuffled(two), (2, D), replace(SMALL, steps=1, lr=1e-30)).dictionary
    first.append(made)
    torch.testing.assert_close(made.encoder, made.decoder.transpose(1, 2))
    torch.testing.assert_close(made.decoder[0], made.decoder[1])
    torch.testing.assert_close(made.decoder.square().sum((0, 2)), torch.ones(48))


def test_rows_are_normalised_for_each_model(two: Tensor):
    some = torch.stack([two[:, 0], 100 * two[:, 1] + 7], 1)
    scale = scale_of(some, SMALL)
    z = scale.normalise(some).view(-1, 2, D)
    assert float(z.mean(0).abs().max()) < 1e-5
    torch.testing.assert_close(z.norm(dim=2).mean(0), torch.full((2,), D**0.5))
    # Errors in the base count as much as the hidden states' own: 100 times less than the tuned model's.
    base, tuned = scale.spread()
    assert tuned / base == pytest.approx(float(scale.scale[0] / scale.scale[1]))


def test_the_median_is_not_moved_by_a_few_huge_rows(one: Tensor):
    some = one.clone()
    some[:5] += 1000
    off = {}
    for bias in ("mean", "median"):
        scale = scale_of(some, replace(SMALL, bias=bias))
        begun = scale.mean + scale.centre.view(1, D) / scale.scale[:, None]
        off[bias] = float((begun - one.mean(0)).norm())
    assert off["median"] < 0.2 < 5 < off["mean"]


def test_the_threshold_is_about_the_cut_and_k_is_reached(two: Tensor):
    training = replace(SMALL, steps=100, k_start=16)
    found = train(shuffled(two), (2, D), training, two)
    assert [p.k for p in found.log[:3]] == [16, 15, 15]
    assert found.log[-1].k == 4
    assert all(p.active <= p.k for p in found.log)
    assert found.dictionary.threshold == found.log[-1].threshold > 0
    assert found.checked[-1].fit.l0 == pytest.approx(4, rel=0.3)


def test_a_fit_is_the_share_of_variance_left(two: Tensor):
    made = train(shuffled(two), (2, D), SMALL).dictionary
    found = fit(made, two)
    error, size = (made.reconstruct(two) - two).square(), (two - two.mean(0)).square()
    for model, share in enumerate(found.unexplained):
        assert share.value == pytest.approx(float(error[:, model].sum() / size[:, model].sum()), rel=1e-4)
        assert share.low is not None
        assert share.high is not None
        assert share.value is not None
        assert share.low < share.value < share.high
    change, back = two[:, 1] - two[:, 0], made.reconstruct(two)
    left = (back[:, 1] - back[:, 0] - change).square().sum() / (change - change.mean(0)).square().sum()
    assert found.difference is not None
    assert found.difference.value == pytest.approx(float(left), rel=1e-4)
    assert found.l0 == pytest.approx(float((made.codes(two) > 0).sum(1).float().mean()))
    halves = [fit(made, half).unexplained[0] for half in (two[:300], two[300:])]
    wide = halves[0]
    assert wide.high is not None
    assert wide.low is not None
    assert found.unexplained[0].high is not None
    assert wide.high - wide.low > found.unexplained[0].high - (found.unexplained[0].low or 0)
    assert fit(made, two[:1]).unexplained[0].value is None


def test_it_stops_when_held_out_rows_gain_nothing(one: Tensor):
    still = replace(SMALL, lr=1e-12, patience=2)
    found = train(shuffled(one), (1, D), still, one[:100])
    assert found.stopped is not None
    assert "not given back better" in found.stopped
    assert found.log[-1].step < found.checked[-1].step + 4 <= still.steps
    assert train(shuffled(one), (1, D), replace(SMALL, patience=2, lr=0.003), one[:100]).stopped is None


def test_dead_latents_are_said(one: Tensor):
    # A code in 64 rows of 4 for each of 2000 latents: most have none.
    found = train(shuffled(one), (1, D), replace(SMALL, latents=2000, dead_after=64, steps=20))
    dead = int(found.dead.sum())
    assert dead > 1000
    assert f"{dead} of 2000 latents are dead" in found.warnings[0]
    assert found.log[-1].dead == dead
    hopeless = replace(SMALL, kind="relu", lr=1e-6, dead_after=128)
    trainer = Trainer(hopeless, scale_of(one, hopeless))
    state = trainer.state()
    state["encoder_bias"] -= 1000
    trainer.restore(state)
    trainer.learn(one[:64])
    with pytest.raises(DataError, match="All 48 latents are dead: none has had a code in the last 128 rows"):
        trainer.learn(one[:64])


def test_dead_latents_learn_from_the_auxiliary_loss(one: Tensor):
    """Half of them read so weakly that none of their codes is ever kept: no other gradient reaches them."""
    dead = {}
    for alpha in (0.0, 0.5):
        training = replace(SMALL, dead_after=640, steps=150, aux_alpha=alpha, lr=0.01)
        trainer = Trainer(training, scale_of(one, training))
        state = trainer.state()
        state["encoder"][:, :24] *= 0.02
        state["idle"][:24] = 640
        trainer.restore(state)
        for step in range(training.steps):
            trainer.learn(one[torch.arange(64 * step, 64 * step + 64) % ROWS])
        dead[alpha] = int(trainer.dead[:24].sum())
    assert dead[0.0] == 24
    assert dead[0.5] <= 6


def test_rows_that_cannot_be_used_are_said(one: Tensor, two: Tensor):
    broken = two.clone()
    broken[300, 1, 3] = float("nan")
    for rows, dims, match in (
        (broken, (2, D), "1 of rows .* not finite"),
        (one, (2, D), r"reads \[row, 2, 32\].*gave \[512, 1, 32\]"),
        (two[:20], (2, D), "20 rows .* of 32 dimensions"),
        (two[:60], (2, D), "fewer than a batch of 64"),
        (two[:0], (2, D), "fewer rows than dimensions|no rows"),
        (
            torch.stack([two[:, 0], torch.full((ROWS, D), 0.1)], 1),
            (2, D),
            "rows of the tuned model are the same",
        ),
        (0 * one, (1, D), "rows of the hidden states are the same"),
    ):
        with pytest.raises(DataError, match=match):
            train(shuffled(rows), dims, SMALL)
    with pytest.raises(DataError, match="fewer codes than the 5000 latents"):
        train(shuffled(one), (1, D), replace(SMALL, latents=5000))
    with pytest.raises(DataError, match="Epoch 1 of the stream gave no rows"):
        train(lambda epoch: iter([one] if epoch == 0 else []), (1, D), SMALL)
    with pytest.raises(DataError, match="no held-out rows"):
        train(shuffled(one), (1, D), SMALL, one[:0])


def test_a_loss_that_overflows_is_said(one: Tensor):
    with pytest.raises(DataError, match=r"The loss is .* at step"):
        train(shuffled(one), (1, D), replace(SMALL, kind="relu", lr=1e20, warmup=0.0))


def test_settings_are_refused_all_at_once():
    bad = replace(SMALL, k=99, warmup=2.0, lr=-1.0, delta=1.0, l1=-1.0)
    with pytest.raises(ConfigErrors) as raised:
        train(lambda epoch: iter([]), (1, D), bad)
    assert len(raised.value.problems) == 5
    for words, models in (({"kind": "relu", "code_norm": "none"}, 2), ({"dtype": "float16"}, 1), ({}, 3)):
        with pytest.raises(ConfigErrors):
            train(lambda epoch: iter([]), (models, D), replace(SMALL, **words))


def test_the_schedules():
    some = replace(SMALL, steps=100, warmup=0.1, decay=0.2, lr=1.0, k=4, k_start=8, anneal=0.5)
    assert [some.rate_at(step) for step in (0, 9, 50, 90, 99)] == pytest.approx([0.1, 1, 1, 0.5, 0.05])
    assert [some.k_at(step) for step in (0, 25, 50, 99)] == [8, 6, 4, 4]
    assert replace(some, lr=None, latents=2**14).peak_rate() == pytest.approx(2e-4)


@given(st.booleans(), st.integers(1, 70), st.integers(1, 700))
@settings(max_examples=20)
def test_adam_is_the_papers(unit: bool, rows: int, width: int):
    """In blocks or whole, against the formula in float64."""
    g = torch.Generator().manual_seed(rows)
    weight = torch.nn.functional.normalize(torch.randn(rows, width, generator=g), dim=1)
    found, true = Learnt.begin(weight.clone(), torch.bfloat16), weight.double()
    first, second = torch.zeros_like(true), torch.zeros_like(true)
    for step in range(1, 4):
        gradient = torch.randn(rows, width, generator=g)
        found.move(gradient, 0.01, step, unit=unit)
        slope = gradient.double()
        if unit:
            slope = slope - (slope * true).sum(1, keepdim=True) * true
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        true = true - 0.01 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        if unit:
            true = torch.nn.functional.normalize(true, dim=1)
    # A row of one value and norm 1 has no slope but rounding's, which Adam makes as large as any.
    if not (unit and width == 1):
        torch.testing.assert_close(found.weight.double(), true, atol=2e-5, rtol=1e-4)
    assert torch.equal(found.cast, found.weight.bfloat16())
