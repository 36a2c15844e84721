"""Activations on disk: what is read is what was written, and what is not whole or not ours is refused."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetrace.core.errors import BadInput, DataError
from finetrace.store import activations, shard_file
from finetrace.store.activations import Activations, ActivationsWriter, Layout, Where
from finetrace.store.keys import differences, said
from finetrace.store.layout import folder_of

MADE_OF = {"base": "a" * 64, "tuned": "b" * 64, "corpus": "c" * 64, "context": 32, "kept": "all"}
LAYOUT = Layout((1, 3), 4, ("chat", "text"), "float32")
SIZES = (5, 3, 6)


def _rows(shard: int, n: int) -> tuple[Where, dict[int, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(shard)
    count = torch.arange(n)
    where = Where(count // 3 + 10 * shard, count % 3, count % 2, count % 2)
    return where, {layer: torch.randn(n, 2, 4, generator=drawn) for layer in LAYOUT.layers}


def _write(root: Path, made_of=MADE_OF, layout=LAYOUT, stop: int = len(SIZES), **options) -> list[int]:
    """Shards that had to be made. stop: a writer that dies before that shard."""
    made: list[int] = []
    with ActivationsWriter(root, made_of, layout, **options) as writer:
        for index, n in enumerate(SIZES):
            if index == stop:
                raise KeyboardInterrupt
            if writer.has(index, f"content {index}"):
                continue
            where, hidden = _rows(index, n)
            for part in (slice(0, 2), slice(2, n)):
                writer.add(_part(where, part), {layer: states[part] for layer, states in hidden.items()})
            writer.cut(index, f"content {index}")
            made.append(index)
    return made


def _part(where: Where, part: slice) -> Where:
    return Where(where.row[part], where.position[part], where.role[part], where.slice[part])


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished cache; not to be written to."""
    root = tmp_path_factory.mktemp("stored")
    assert _write(root, rows=sum(SIZES)) == [0, 1, 2]
    return root


@pytest.fixture
def root(stored: Path, tmp_path: Path) -> Path:
    shutil.copytree(stored, tmp_path / "root")
    return tmp_path / "root"


def _shard(root: Path, index: int) -> Path:
    return folder_of(root, MADE_OF, LAYOUT) / f"{index:05d}.safetensors"


def test_what_is_read_is_what_was_written(stored):
    found = Activations.find(stored, MADE_OF, LAYOUT)
    assert (len(found), found.shards, found.layout) == (sum(SIZES), 3, LAYOUT)
    for index, n in enumerate(SIZES):
        where, hidden = _rows(index, n)
        for layer in LAYOUT.layers:
            assert torch.equal(found.states(index, layer), hidden[layer])
        there = found.where(index)
        for name in ("row", "position", "role", "slice"):
            assert torch.equal(getattr(there, name).long(), getattr(where, name)), name
    names = sorted(path.name for path in _shard(stored, 0).parent.iterdir())
    assert names == [
        "00000.safetensors",
        "00001.safetensors",
        "00002.safetensors",
        "key.json",
        "manifest.json",
    ]


def test_a_shard_is_a_file_that_the_library_reads(stored):
    assert int.from_bytes(_shard(stored, 2).read_bytes()[:8], "little") % 8 == 0, "tensors are aligned"
    held = load_file(_shard(stored, 2))
    with _shard(stored, 2).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, tensor in held.items():
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0, (
            "and each begins at a number of its own"
        )
    assert set(held) == {"layer.1", "layer.3", "row", "position", "role", "slice"}
    assert torch.equal(held["layer.3"], _rows(2, 6)[1][3])


def test_bfloat16_is_the_default_and_rounds_to_nearest(tmp_path):
    layout = Layout((1, 3), 4, ("chat", "text"))
    _write(tmp_path, layout=layout)
    states = Activations.find(tmp_path, MADE_OF, layout).states(0, 3)
    assert states.dtype == torch.bfloat16
    assert torch.equal(states, _rows(0, 5)[1][3].to(torch.bfloat16))


def test_rows_and_batches_cover_everything_once(stored):
    found = Activations.find(stored, MADE_OF, LAYOUT)
    whole = torch.cat([_rows(index, n)[1][1] for index, n in enumerate(SIZES)])
    wanted = torch.tensor([13, 0, 5, 5, 8, 7])
    assert torch.equal(found.rows(1, wanted), whole[wanted])
    assert torch.equal(torch.cat(list(found.batches(1, 4))), whole)
    drawn = list(found.batches(1, 4, torch.Generator().manual_seed(3)))
    again = list(found.batches(1, 4, torch.Generator().manual_seed(3)))
    assert [len(one) for one in drawn] == [4, 4, 4, 2]
    assert not torch.equal(torch.cat(drawn), whole)
    assert torch.equal(torch.cat(drawn), torch.cat(again))
    assert torch.equal(torch.cat(drawn)[:, 0, 0].sort().values, whole[:, 0, 0].sort().values)
    assert [len(one) for one in found.batches(1, 4, last=False)] == [4, 4, 4]
    assert [len(one) for one in found.batches(1, 7, last=False)] == [7, 7]


def test_what_a_reader_changes_stays_in_its_memory(stored):
    Activations.find(stored, MADE_OF, LAYOUT).states(0, 1).zero_()
    assert torch.equal(Activations.find(stored, MADE_OF, LAYOUT).states(0, 1), _rows(0, 5)[1][1])


def test_a_stopped_writer_goes_on_and_ends_with_the_same_bytes(tmp_path, stored):
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, stop=2)
    with pytest.raises(DataError, match="not finished: 2 shards are there"):
        Activations.find(tmp_path, MADE_OF, LAYOUT)
    # The last line of a killed writer is torn, and so is the file that it was at.
    folder = _shard(tmp_path, 0).parent
    with (folder / "shards.jsonl").open("a") as file:
        file.write('{"index": 2, "ro')
    (folder / ".00002.safetensors.x.part").write_bytes(b"half")
    assert _write(tmp_path, rows=sum(SIZES)) == [2]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in _shard(stored, 0).parent.iterdir()
    }
    assert _write(tmp_path) == [], "nothing is left to do"


def test_a_cache_that_is_being_mended_counts_as_unfinished(root):
    _flip(_shard(root, 1))
    with pytest.raises(KeyboardInterrupt):
        _write(root, stop=1)
    with pytest.raises(DataError, match="not finished: 2 shards are there"):
        Activations.find(root, MADE_OF, LAYOUT)


def test_what_is_added_is_copied(tmp_path):
    """A pass may use its memory again before the thread has written what was in it."""
    where, hidden = _rows(0, 5)
    with ActivationsWriter(tmp_path, MADE_OF, LAYOUT) as writer:
        writer.add(where, hidden)
        for states in hidden.values():
            states.zero_()
        writer.cut(0)
    assert torch.equal(Activations.find(tmp_path, MADE_OF, LAYOUT).states(0, 1), _rows(0, 5)[1][1])


def test_shards_of_another_content_are_written_anew(root):
    with ActivationsWriter(root, MADE_OF, LAYOUT) as writer:
        assert not writer.has(0, "cut elsewhere")
        writer.add(*_rows(7, 4))
        writer.cut(0, "cut elsewhere")
    found = Activations.find(root, MADE_OF, LAYOUT)
    assert (len(found), found.shards) == (4, 1)
    assert not _shard(root, 1).exists()


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut_short, "cut short or was changed"),
        (_flip, "its checksum is another"),
        (Path.unlink, "is not there"),
    ],
)
def test_a_bad_shard_is_refused_and_redone(root, spoil, said):
    spoil(_shard(root, 1))
    found = Activations.find(root, MADE_OF, LAYOUT)
    assert torch.equal(found.states(0, 1), _rows(0, 5)[1][1]), "the others are as good as they were"
    with pytest.raises(DataError, match=rf"00001\.safetensors.*{said}.*only what is wrong is redone"):
        found.states(1, 1)
    with pytest.raises(DataError, match=said):
        found.check()
    with pytest.raises(DataError, match=said):
        list(found.batches(1, 4))
    assert _write(root) == [1]
    Activations.find(root, MADE_OF, LAYOUT).check()


def test_a_manifest_that_vouches_for_another_layout_is_refused(root):
    """A shard that is whole and not what the cache says."""
    folder = _shard(root, 0).parent
    other = {"row": [torch.zeros(5, dtype=torch.int64)]}
    written = shard_file.write(folder / "00000.safetensors", other, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0] |= {"size": written.size, "sha256": written.sha256}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"does not hold what manifest\.json says"):
        Activations.find(root, MADE_OF, LAYOUT).states(0, 1)


@pytest.mark.parametrize("text", ["{", "[]", '{"shards": [{"index": 0}]}', '{"shards": []}'])
def test_a_damaged_manifest_is_refused_and_mended(root, text):
    (_shard(root, 0).parent / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        Activations.find(root, MADE_OF, LAYOUT)
    assert _write(root) == [0, 1, 2]


def test_another_models_cache_is_not_found_and_the_difference_is_said(stored):
    with pytest.raises(DataError, match=r"differs in made_of\.tuned \(b+… there, d+… asked for\)\.") as error:
        Activations.find(stored, MADE_OF | {"tuned": "d" * 64}, LAYOUT)
    assert "base" not in str(error.value)
    with pytest.raises(DataError, match=r"layout\.layers \(\[1, 3\] there, \[1\] asked for\)"):
        Activations.find(stored, MADE_OF, Layout((1,), 4, ("chat", "text"), "float32"))


def test_a_cache_that_was_renamed_to_anothers_name_is_refused(root):
    other = MADE_OF | {"tuned": "b" * 63 + "e"}
    _shard(root, 0).parent.rename(folder_of(root, other, LAYOUT))
    with pytest.raises(DataError, match=r"of something else: made_of\.tuned \(…b+ there, …b+e asked for\)"):
        Activations.find(root, other, LAYOUT)
    with (
        pytest.raises(DataError, match="of something else"),
        ActivationsWriter(root, other, LAYOUT),
    ):
        pass


def test_a_cache_of_more_layers_serves_those_who_ask_for_fewer(tmp_path):
    for layers in ((0, 1, 3), (1, 3)):
        layout = replace(LAYOUT, layers=layers)
        with ActivationsWriter(tmp_path, MADE_OF, layout) as writer:
            writer.add(_rows(0, 2)[0], {layer: torch.zeros(2, 2, 4) for layer in layers})
            writer.cut(0)

    def held(*layers: int) -> tuple[int, ...] | None:
        found = Activations.holding(tmp_path, MADE_OF, replace(LAYOUT, layers=layers))
        return found.layout.layers if found else None

    assert [held(1), held(0, 1), held(1, 2)] == [(1, 3), (0, 1, 3), None], "the one of fewest layers"
    (folder_of(tmp_path, MADE_OF, replace(LAYOUT, layers=(1, 3))) / "00000.safetensors").unlink()
    assert held(1) == (0, 1, 3), "none of whose shards was deleted"


def test_of_several_the_nearest_is_named(tmp_path):
    far, near = (MADE_OF | more for more in ({"tuned": "e", "corpus": "e"}, {"tuned": "f"}))
    for made_of in (far, near):
        _write(tmp_path, made_of)
    with pytest.raises(DataError, match=r"differs in made_of\.tuned \(f there, b+ asked for\)\.$"):
        Activations.find(tmp_path, MADE_OF | {"tuned": "b"}, LAYOUT)


def test_what_only_one_key_has_is_a_difference_and_many_are_counted():
    assert differences({"a": (1, 2)}, {"a": [1, 2], "b": 2}) == [("b", "nothing", "2")]
    assert differences({"b": 2}, {}) == [("b", "2", "nothing")]
    assert said([(str(i), "1", "2") for i in range(8)]).endswith("5 (1 there, 2 asked for) and 2 more")


def test_another_version_is_refused(root):
    folder = _shard(root, 0).parent
    key = json.loads((folder / "key.json").read_text())
    (folder / "key.json").write_text(json.dumps(key | {"version": 99}))
    with pytest.raises(DataError, match="version 99 of the format, and this reads version 1"):
        Activations(folder)


def test_two_writers_at_once(tmp_path):
    with ActivationsWriter(tmp_path, MADE_OF, LAYOUT) as writer:
        second = ActivationsWriter(tmp_path, MADE_OF, LAYOUT)
        with pytest.raises(BadInput, match="is being written by process"), second:
            pass
        writer.cut(0)


def test_a_disk_that_is_too_small_is_known_before_the_work(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 5 * 2**20))
    wide = Layout((1,), 4096, ("text",))
    with (
        pytest.raises(
            BadInput, match=r"Storing 1,000 rows of activations needs 15\.6 MiB, and .* has 5\.0 MiB"
        ),
        ActivationsWriter(tmp_path, MADE_OF, wide, rows=1000),
    ):
        pass
    with pytest.raises(BadInput, match="No shard"), ActivationsWriter(tmp_path, MADE_OF, wide, rows=100):
        pass


def test_room_is_asked_for_what_is_not_there_yet(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, stop=2)
    usage, rest = namedtuple("usage", "total used free"), SIZES[2] * (2 * 2 * 4 * 4 + 15)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, rest - 1))
    with pytest.raises(BadInput, match="Storing 6 rows of activations needs"):
        _write(tmp_path, rows=sum(SIZES))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, rest))
    assert _write(tmp_path, rows=sum(SIZES)) == [2]


def test_a_disk_that_fills_up_reaches_the_caller_and_keeps_what_is_whole(tmp_path, monkeypatch):
    write = activations.write

    def full(path, tensors, metadata):
        if path.name.startswith("00001"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, tensors, metadata)

    monkeypatch.setattr(activations, "write", full)
    with pytest.raises(BadInput, match=r"Shard 1 of the activations needs .* free.*goes on from them"):
        _write(tmp_path)
    monkeypatch.setattr(activations, "write", write)
    assert _write(tmp_path)[0] == 1
    Activations.find(tmp_path, MADE_OF, LAYOUT).check()


def test_an_error_of_the_thread_is_raised_before_the_end(tmp_path, monkeypatch):
    def broken(path, tensors, metadata):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(activations, "write", broken)
    writer = ActivationsWriter(tmp_path, MADE_OF, LAYOUT)
    with pytest.raises(BadInput, match=r"Shard 0 .* cannot be written to .*Input/output error"), writer:
        _cut_many(writer)


def _cut_many(writer: ActivationsWriter) -> None:
    """The queue holds a few shards, and then it waits for the first: its error comes no later."""
    for index in range(activations.QUEUE + 1):
        writer.cut(index)
    pytest.fail("an error of the thread was not raised")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda writer: (writer.cut(0), writer.add(*_rows(0, 2))), "belong to no shard"),
        (lambda writer: writer.cut(1), r"counted from 0 without a gap, not \[1\]"),
        (lambda writer: writer.cut(0), "0 rows of activations were written and 14 expected"),
        (lambda writer: writer.add(_rows(0, 2)[0], {1: torch.zeros(2, 2, 4)}), r"was given \[1\]"),
        (lambda writer: writer.add(_rows(0, 2)[0], _rows(0, 3)[1]), r"'layer\.1' is \[3, 2, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_counts_as_finished(tmp_path, change, said):
    with pytest.raises(BadInput, match=said), ActivationsWriter(tmp_path, MADE_OF, LAYOUT, rows=14) as writer:
        change(writer)
    with pytest.raises(DataError, match="not finished"):
        Activations.find(tmp_path, MADE_OF, LAYOUT)


def test_rows_and_layers_that_are_not_there(stored):
    found = Activations.find(stored, MADE_OF, LAYOUT)
    with pytest.raises(BadInput, match="rows 0 to 13"):
        found.rows(1, torch.tensor([14]))
    with pytest.raises(BadInput, match=r"layers \[1, 3\], not 2"):
        found.states(0, 2)
    with pytest.raises(DataError, match="no stored activations in"):
        Activations(stored)
