"""The pass: what observers are shown, and what happens when memory runs out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import save_base
from tests.worlds import rows, world

from finetrace.api.audit import run
from finetrace.api.dose import match
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.card import Needs
from finetrace.core.errors import ModelError
from finetrace.data import Corpus, build_corpus, read_rows, shards
from finetrace.engine import Contrast, Job, LogitChunk, Shape, Step
from finetrace.engine import run as engine
from finetrace.engine.run import run_shard
from finetrace.models import Pair, open_pair


class Seen:
    """An observer that keeps what it is shown."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.chunks: list[tuple[Step, LogitChunk]] = []

    def see(self, step: Step) -> None:
        self.steps.append(step)

    def see_logits(self, chunk: LogitChunk) -> None:
        self.chunks.append((self.steps[-1], chunk))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base, tuned, nulls = world(tmp_path_factory.mktemp("pair"), nulls=1)
    return open_pair(base, tuned, nulls={"null": nulls[0]})


def show(pair: Pair, contrast: Contrast, needs: Needs, batch_size: int = 5) -> tuple[Corpus, Seen]:
    corpus = build_corpus(read_rows(rows(12)), pair.tokenizer)
    job = Job("seen", contrast, needs, Seen, journal=Path("unused"))  # pyright: ignore[reportArgumentType]
    (shard,) = shards(corpus, 10**6)
    (seen,) = run_shard(pair, corpus, shard, [job], batch_size)
    return corpus, seen  # pyright: ignore[reportReturnType]


def test_every_kept_position_is_shown_once_with_its_next_token(pair: Pair):
    corpus, seen = show(pair, Contrast("pair", "tuned"), Needs(logits=True))
    shown = set()
    for step, chunk in seen.chunks:
        for i in range(len(chunk.kl)):
            row, position = int(step.row[chunk.batch_row[i]]), int(chunk.position[i])
            tokens = corpus.tokens[row]
            assert int(chunk.ids[i]) == tokens.ids[position]
            assert int(chunk.next_id[i]) == tokens.ids[position + 1]
            assert int(chunk.role[i]) == tokens.role[position]
            assert int(chunk.slice[i]) == corpus.slice_of[row]
            shown.add((row, position))
    assert len(shown) == sum(len(c.kl) for _, c in seen.chunks) == corpus.scored


def test_chunk_figures_against_whole_logits(pair: Pair):
    _, seen = show(pair, Contrast("pair", "tuned"), Needs(logits=True))
    step, chunk = seen.chunks[0]
    where = (chunk.batch_row, chunk.position)
    attention = torch.nn.functional.pad(step.keep[:, :-1].long(), (1, 0), value=1)
    base = pair.base(input_ids=step.ids, attention_mask=attention).logits[where]
    tuned = pair.tuned(input_ids=step.ids, attention_mask=attention).logits[where]
    wanted = (tuned - base) - (tuned - base).mean(-1, keepdim=True)
    torch.testing.assert_close(chunk.base_log_probs, base.log_softmax(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(chunk.centred_difference, wanted, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(chunk.logit_l2, wanted.norm(dim=-1), rtol=1e-4, atol=1e-5)
    values, ids = chunk.promoted(3)
    torch.testing.assert_close(values, chunk.centred_difference.topk(3).values)
    assert torch.equal(chunk.centred_difference.gather(-1, ids), values)
    fallen, _ = chunk.suppressed(3)
    torch.testing.assert_close(fallen, chunk.centred_difference.topk(3, largest=False).values)


def test_layers_are_shown_and_the_forward_stops_after_the_last(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    def never(*args: Any) -> None:
        raise AssertionError("a method that wants no logits pays for no head")

    monkeypatch.setattr(engine, "raw_logits", never)
    calls: list[bool] = []
    trunk = Pair.trunk

    def spy(self: Pair, side: str, ids: Any, attention: Any, layers: Any = (), final: bool = True) -> Any:
        calls.append(final)
        return trunk(self, side, ids, attention, layers, final)

    monkeypatch.setattr(Pair, "trunk", spy)
    _, seen = show(pair, Contrast("pair", "tuned"), Needs(layers=(0, 1.0)))
    assert seen.chunks == []
    assert set(calls) == {False}
    step = seen.steps[0]
    for layer in (0, 1):
        base, tuned = step.hidden(layer)
        assert base.shape == (*step.ids.shape, pair.d_model)
        assert not torch.equal(base, tuned)
    base_only, _ = trunk(pair, "base", step.ids, step.keep.long().cummax(1).values, (0,)).layers[0], None
    assert base_only.shape == step.hidden(0)[0].shape


def test_the_echo_is_the_base_in_another_shape(pair: Pair):
    _, seen = show(pair, Contrast("self", "base", echo=True), Needs(logits=True, layers=(0,)))
    for step, chunk in seen.chunks:
        base, echo = step.hidden(0)
        torch.testing.assert_close(base[step.keep], echo[step.keep], rtol=1e-4, atol=1e-5)
        assert float(chunk.kl.max()) < 1e-9


def test_an_echo_of_the_longest_text_stays_within_the_models_positions(tmp_path: Path):
    base = save_base(tmp_path, "gpt2")
    pair = open_pair(base, None)
    longest = pair.max_positions
    assert longest is not None
    corpus = build_corpus(
        read_rows([{"text": " ".join(["w1"] * (longest - 1))}]), pair.tokenizer, context=longest
    )
    assert corpus.longest == longest
    job = Job("seen", Contrast("self", "base", echo=True), Needs(logits=True), Seen, Path("unused"))  # pyright: ignore[reportArgumentType]
    (seen,) = run_shard(pair, corpus, shards(corpus)[0], [job], 4)
    assert len(seen.chunks) > 0  # pyright: ignore[reportAttributeAccessIssue]


def test_a_scaled_contrast_leaves_the_pair_as_it_was(pair: Pair):
    _, whole = show(pair, Contrast("a", "null"), Needs(logits=True))
    _, half = show(pair, Contrast("b", "null", scale=0.5), Needs(logits=True))
    _, again = show(pair, Contrast("c", "null"), Needs(logits=True))
    total = [sum(float(c.kl.sum()) for _, c in seen.chunks) for seen in (whole, half, again)]
    assert total[0] == total[2]
    assert total[1] == pytest.approx(total[0] / 4, rel=0.2), "KL grows about as the square"


@pytest.mark.parametrize("target", [1e-4, 3e-3, 0.2])
def test_match_finds_the_dose(target: float):
    curve = lambda factor: 2e-3 * factor**1.7  # noqa: E731
    factor = match(curve, target)
    assert factor is not None
    assert curve(factor) == pytest.approx(target, rel=0.021)


def test_match_says_when_it_cannot():
    assert match(lambda factor: 1e-9 * factor**2, 1.0) is None
    assert match(lambda factor: 0.0, 1.0) is None
    assert match(lambda factor: 1.0, 0.0) is None


def ask(tmp_path: Path) -> Request:
    world(tmp_path, nulls=0)
    base, tuned = str(tmp_path / "base"), str(tmp_path / "lora")
    return Request(base, tuned, data=rows(24), out=tmp_path / "out", shape=Shape(8, 60))


def limit(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Memory for batches of `most` texts only."""
    real = engine.run_shard

    def limited(pair: Any, corpus: Any, shard: Any, jobs: Any, batch_size: int, kernel: Any = None) -> Any:
        if batch_size > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(pair, corpus, shard, jobs, batch_size, kernel)

    monkeypatch.setattr(engine, "run_shard", limited)


def test_out_of_memory_halves_the_batch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = ask(tmp_path)
    wanted = run(request, check(request), Watch())["kl"].numbers["kl_mean"].value
    limit(monkeypatch, 2)
    watch = Watch()
    found = run(replace(request, out=tmp_path / "tight"), check(request), watch)
    assert found["kl"].numbers["kl_mean"].value == pytest.approx(wanted, rel=1e-6)
    assert [n for n in watch.notes if "memory" in n] == [
        "Out of memory: going on with batches of 4.",
        "Out of memory: going on with batches of 2.",
    ]
    assert found.findings.protocol["notes"] == watch.notes


def test_no_memory_even_for_one_text_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = ask(tmp_path)
    limit(monkeypatch, 0)
    with pytest.raises(ModelError, match="one text at a time"):
        run(request, check(request), Watch())


def test_another_error_is_not_taken_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    request = ask(tmp_path)

    def wrong(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(engine, "run_shard", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(request, check(request), Watch())
