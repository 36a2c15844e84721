"""Hidden states on disk: what is read back is what the pass sees, or what it sees as the store rounds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worlds import rows, world

from finetrace.core.errors import DataError
from finetrace.data import build_corpus, read_rows
from finetrace.engine import Contrast, Shape
from finetrace.engine.states import States, layout_of, made_of, write
from finetrace.engine.stream import stream
from finetrace.models import Pair, open_pair
from finetrace.store.activations import Activations

SHAPE = Shape(batch_size=4, shard_tokens=120)
CONTRAST = Contrast("pair", "tuned")
BOTH = [0, 1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base, tuned, nulls = world(tmp_path_factory.mktemp("world"), nulls=1)
    return open_pair(base, tuned, nulls={"null_0": nulls[0]}, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def corpus(pair: Pair) -> Any:
    return build_corpus(read_rows(rows(24)), pair.tokenizer)


def into(root: Path, pair: Pair, corpus: Any, dtype: str, side: str = "tuned") -> Any:
    return root, made_of(pair, corpus, side, SHAPE, dtype, {}), layout_of(pair, corpus, BOTH, dtype)


def stored(root: Path, pair: Pair, corpus: Any, dtype: str) -> States:
    return States(dtype, {"tuned": write(pair, corpus, CONTRAST, SHAPE, into(root, pair, corpus, dtype))})


def states(pair: Pair, corpus: Any, how: States | None, contrast: Contrast = CONTRAST, **options: Any) -> Any:
    """ids, roles and (base, tuned) at every token of the texts, batch by batch, of both layers."""
    found = []
    for step in stream(pair, corpus, contrast, BOTH, SHAPE, states=how, **options):
        length = torch.tensor([len(corpus.tokens[i]) for i in step.row.tolist()])
        real = step.position < length[:, None]
        sides = [side[real] for layer in BOTH for side in step.hidden(layer)]
        found.append((step.ids[real], step.role[real], *sides))
    return found


def same(one: Any, other: Any) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


class _Other:
    """A pair of which a little is otherwise."""

    def __init__(self, pair: Pair, **changed: Any) -> None:
        self._pair, self._changed = pair, changed

    def __getattr__(self, name: str) -> Any:
        return self._changed[name] if name in self._changed else getattr(self._pair, name)


class _Deaf:
    """A pair whose models must not be run."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def __getattr__(self, name: str) -> Any:
        assert name != "trunk", "states that are on the disk were made again"
        return getattr(self._pair, name)


def test_what_a_store_of_the_models_own_type_gives_back_is_the_pass_to_the_last_bit(pair, corpus, tmp_path):
    held = stored(tmp_path, pair, corpus, "float32")
    deaf: Any = _Deaf(pair)
    assert same(states(deaf, corpus, held), states(pair, corpus, None))
    assert same(states(deaf, corpus, held, shuffled=3), states(pair, corpus, None, shuffled=3))
    assert not same(states(deaf, corpus, held, shuffled=3), states(pair, corpus, None))
    assert not same(states(deaf, corpus, held, shuffled=3), states(deaf, corpus, held, shuffled=4))


def test_a_coarser_store_gives_what_is_made_and_rounded_alike(pair, corpus, tmp_path):
    held = stored(tmp_path, pair, corpus, "bfloat16")
    read, made = states(_Deaf(pair), corpus, held), states(pair, corpus, States("bfloat16"))  # type: ignore[arg-type]
    assert same(read, made)
    assert not same(read, states(pair, corpus, None))


def test_a_small_change_survives_its_rounding(pair, corpus, tmp_path):
    """Two states that are each rounded leave a change that is mostly their rounding; a change rounded by itself keeps two digits."""
    null = replace(CONTRAST, side="null_0")
    true, rounded = (states(pair, corpus, how, null) for how in (None, States("bfloat16")))
    worst, naive, size = 0.0, 0.0, 0.0
    for left, right in zip(true, rounded, strict=True):
        change, kept = left[5] - left[4], right[5] - right[4]
        each = left[5].bfloat16().float() - left[4].bfloat16().float()
        worst += float((kept - change).square().sum())
        naive += float((each - change).square().sum())
        size += float(change.square().sum())
    assert (worst / size) ** 0.5 < 0.003
    assert naive > 25 * worst


def test_what_is_not_stored_is_made_and_rounded(pair, corpus, tmp_path):
    held = stored(tmp_path, pair, corpus, "bfloat16")
    for contrast in (
        replace(CONTRAST, side="null_0"),
        replace(CONTRAST, scale=0.5),
        Contrast("desk", "base", echo=True),
    ):
        assert held.cache(contrast, BOTH) is None
        assert same(states(pair, corpus, held, contrast), states(pair, corpus, States("bfloat16"), contrast))
    assert held.cache(CONTRAST, [1]) is not None
    assert held.cache(CONTRAST, [1, 2]) is None


def test_a_killed_writer_goes_on_and_ends_on_the_same_bytes(pair, corpus, tmp_path, monkeypatch):
    whole = stored(tmp_path / "whole", pair, corpus, "bfloat16").caches["tuned"]
    forwards, trunk = 0, pair.trunk

    def dying(*arguments: Any) -> Any:
        nonlocal forwards
        forwards += 1
        if forwards == 9:
            raise KeyboardInterrupt
        return trunk(*arguments)

    monkeypatch.setattr(pair, "trunk", dying)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path / "killed", pair, corpus, "bfloat16")
    again = stored(tmp_path / "killed", pair, corpus, "bfloat16").caches["tuned"]
    assert 0 < forwards - 9 < 2 * 24 // 3, "whole shards are kept"
    names = sorted(path.name for path in whole.folder.iterdir())
    assert [path.name for path in sorted(again.folder.iterdir())] == names
    assert all((again.folder / name).read_bytes() == (whole.folder / name).read_bytes() for name in names)


def test_shards_that_another_processor_made_are_made_again(pair, corpus, tmp_path, monkeypatch):
    """And whoever waits is told of every token, whether it is made or was there."""
    said = []

    def forwards_of_a_write() -> int:
        told, calls, trunk = 0, 0, pair.trunk

        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return trunk(*arguments)

        def advance(tokens: int) -> None:
            nonlocal told
            told += tokens

        with monkeypatch.context() as patch:
            patch.setattr(pair, "trunk", counted)
            write(pair, corpus, CONTRAST, SHAPE, into(tmp_path, pair, corpus, "bfloat16"), advance=advance)
        said.append(told)
        return calls

    made = forwards_of_a_write()
    assert (made > 0, forwards_of_a_write()) == (True, 0)
    monkeypatch.setattr("finetrace.engine.journal.environment", lambda device, batch_size: {"cpu": "another"})
    assert forwards_of_a_write() == made
    list(stream(pair, corpus, CONTRAST, [0], SHAPE, advance=said.append))
    assert [*said[:3], sum(said[3:])] == [corpus.n_tokens] * 4


def test_all_that_moves_a_state_names_the_cache(pair, corpus, tmp_path):
    usual = into(tmp_path, pair, corpus, "bfloat16")[1]
    others = [
        made_of(pair, corpus, "null_0", SHAPE, "bfloat16", {}),
        made_of(pair, corpus, "tuned", replace(SHAPE, batch_size=5), "bfloat16", {}),
        made_of(pair, corpus, "tuned", replace(SHAPE, shard_tokens=90), "bfloat16", {}),
        made_of(_Other(pair, dtype=torch.float16), corpus, "tuned", SHAPE, "bfloat16", {}),  # type: ignore[arg-type]
        made_of(_Other(pair, tokenizer_identity=lambda: "another"), corpus, "tuned", SHAPE, "bfloat16", {}),  # type: ignore[arg-type]
        made_of(_Other(pair, device_type="cuda"), corpus, "tuned", SHAPE, "bfloat16", {}),  # type: ignore[arg-type]
        made_of(pair, corpus, "tuned", SHAPE, "float32", {}),
        made_of(pair, corpus, "tuned", SHAPE, "bfloat16", {"quantization": "nf4"}),
        made_of(pair, build_corpus(read_rows(rows(23)), pair.tokenizer), "tuned", SHAPE, "bfloat16", {}),
    ]
    assert len({repr(one) for one in (usual, *others)}) == 10


def test_rows_in_another_order_are_refused(pair, corpus, tmp_path, monkeypatch):
    held = stored(tmp_path, pair, corpus, "bfloat16")
    with pytest.raises(DataError, match="another order"):
        list(stream(pair, corpus, CONTRAST, BOTH, replace(SHAPE, shard_tokens=90), states=held))
    there = Activations.where
    monkeypatch.setattr(
        Activations, "where", lambda self, at: replace(there(self, at), row=there(self, at).row + 1)
    )
    with pytest.raises(DataError, match="another order"):
        list(stream(pair, corpus, CONTRAST, BOTH, SHAPE, states=held))
