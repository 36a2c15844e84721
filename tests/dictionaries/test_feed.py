"""What a dictionary is trained on: which tokens, parted how, and the same rows from memory as from a shuffle buffer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.worlds import rows, world

from finetrace.data import build_corpus, read_rows
from finetrace.data.roles import TEMPLATE
from finetrace.dictionaries import feed as feeds
from finetrace.dictionaries.feed import Feed
from finetrace.engine.desk import Desk
from finetrace.engine.subject import make_subject
from finetrace.models import open_pair


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("feed")
    base, tuned, _ = world(folder, nulls=0)
    pair = open_pair(base, tuned)
    # Two rows of other slices with the same words.
    twins = [{"slice": name, "text": f"w1 w2 w{i} w4"} for name in ("one", "two") for i in range(12)]
    corpus = build_corpus(read_rows([*rows(12), *twins]), pair.tokenizer)
    subject = make_subject(pair, corpus.slices, "tuned", 0)
    return Desk(pair, "tuned", 1.0, subject, 0, folder / "scratch", {}, {}, corpus=corpus)


def sorted_rows(found: Any) -> np.ndarray:
    flat = torch.cat(list(found)).flatten(1).numpy()
    return flat[np.lexsort(flat.T)]


def test_from_memory_and_from_a_buffer_come_the_same_rows(desk: Desk):
    memory, buffer = Feed(desk, 0.5, "both"), Feed(desk, 0.5, "both", memory=20_000)
    assert (memory.fits, buffer.fits) == (True, False)
    for feed in (memory, buffer):
        first = list(feed.training(16)(0))
        assert all(len(some) == 16 for some in first[:-1])
        assert all(torch.equal(a, b) for a, b in zip(first, feed.training(16)(0), strict=True))
        assert not torch.equal(first[0], next(feed.training(16)(1)))
    one, other = (sorted_rows(feed.training(16)(0)) for feed in (memory, buffer))
    assert np.array_equal(one, other)
    assert len(one) == memory.moments["training"].tokens
    assert torch.equal(memory.validation, buffer.validation)
    assert np.array_equal(memory.validation_texts, buffer.validation_texts)
    held = [found for _, found in memory.readings("held out")]
    keys = np.concatenate([found.keys[found.text.numpy()] for found in held])
    assert np.array_equal(memory.validation_texts, keys), "so few rows are all taken"
    for part, moments in memory.moments.items():
        assert torch.equal(moments.mean, buffer.moments[part].mean)


def test_tokens_that_count_are_counted_once_and_in_one_part(desk: Desk):
    feed = Feed(desk, 0.5, "difference")
    corpus = desk.corpus
    assert corpus is not None
    wanted = {
        (row, place)
        for row, one in enumerate(corpus.tokens)
        for place in range(1, one.scored)
        if one.role[place] != TEMPLATE
    }
    parts: dict[str, set[tuple[int, int]]] = {}
    for part in ("training", "held out"):
        found = [t for _, t in feed.readings(part)]
        places = [(int(t.rows[i]), int(p)) for t in found for i, p in zip(t.text, t.position, strict=True)]
        parts[part] = set(places)
        assert len(places) == len(parts[part]) == feed.moments[part].tokens
    assert parts["training"] | parts["held out"] == wanted
    assert {row for row, _ in parts["training"]}.isdisjoint({row for row, _ in parts["held out"]})
    rows_ = torch.cat(list(feed.training(16)(0))).double()
    assert rows_.shape[1] == 1
    assert rows_.mean(0)[0] == pytest.approx(feed.moments["training"].mean[2].numpy(), rel=1e-6)
    variance = (rows_[:, 0] - rows_[:, 0].mean(0)).square().sum(1).mean()
    assert float(feed.moments["training"].variance[2]) == pytest.approx(float(variance), rel=1e-6)


def test_equal_texts_fall_on_one_side(desk: Desk):
    feed, corpus = Feed(desk, 0.5, "base", held=0.5), desk.corpus
    assert corpus is not None
    sides: dict[bytes, set[str]] = {}
    for part in ("training", "held out"):
        for _, found in feed.readings(part):
            for row in found.rows[np.unique(found.text.numpy())]:
                sides.setdefault(corpus.tokens[row].ids.tobytes(), set()).add(part)
    assert len(sides) < len(corpus.tokens), "there are twins"
    assert all(len(found) == 1 for found in sides.values())
    assert set.union(*sides.values()) == {"training", "held out"}


def test_template_tokens_count_only_if_asked_for(desk: Desk):
    def tokens(template: bool) -> int:
        feed = Feed(desk, 0.5, "tuned", template=template)
        return sum(moments.tokens for moments in feed.moments.values())

    corpus = desk.corpus
    assert corpus is not None
    assert tokens(True) == sum(max(0, one.scored - 1) for one in corpus.tokens)
    assert tokens(False) < tokens(True)


def test_a_small_corpus_has_held_out_texts_too(desk: Desk):
    corpus = build_corpus(read_rows(rows(6)), desk.pair.tokenizer)
    feed = Feed(replace(desk, corpus=corpus), 0.5, "both", held=0.01)
    assert feed.moments["held out"].texts == 3
    assert feed.moments["training"].texts == 3


def test_of_many_held_out_rows_some_are_looked_at_evenly_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    whole = Feed(desk, 0.5, "both", held=0.5)
    n = len(whole.validation)
    monkeypatch.setattr(feeds, "_VALIDATION", -(-n // 3))
    some = Feed(desk, 0.5, "both", held=0.5)
    at = [torch.equal(some.validation, whole.validation[::stride]) for stride in range(1, 9)].index(True) + 1
    assert at > 2, "of so many one, whatever the batches"
    assert np.array_equal(some.validation_texts, whole.validation_texts[::at])
    assert len(some.validation) < n == whole.moments["held out"].tokens


def test_tokens_without_finite_states_are_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    whole, taken = Feed(desk, 0.5, "both"), feeds.tokens

    def two_lost(step: Any, layer: int) -> Any:
        found = taken(step, layer)
        keep = torch.arange(len(found)) >= 2
        left = {name: getattr(found, name)[keep] for name in ("base", "tuned", "text", "position")}
        return replace(found, **left, lost=2)

    assert whole.lost == 0
    monkeypatch.setattr(feeds, "tokens", two_lost)
    fewer = Feed(desk, 0.5, "both")
    count = [sum(one.tokens for one in feed.moments.values()) for feed in (whole, fewer)]
    assert fewer.lost == count[0] - count[1] > 0
