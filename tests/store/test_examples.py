"""Files of examples: the largest and samples of each bin, each text once, the same bytes however they were gathered."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import BadInput, DataError
from finetrace.store import examples_writer
from finetrace.store.examples import BINS, GRAM, Examples, Text
from finetrace.store.examples_writer import RESERVE, ExamplesWriter
from finetrace.store.near import ALIKE

GROUPS = ("kl", "norm")


def _text(*ids: int, slice_name: str = "text", row: int = 7) -> Text:
    return Text(np.array(ids), [f"<{one}>" for one in ids], slice_name, row)


def _apart(i: int, n: int = 12) -> Text:
    """Texts that share no token."""
    return _text(*range(1000 * i, 1000 * i + n), row=i)


def _offer(writer: ExamplesWriter, text: Text, *scores: float) -> None:
    values = np.zeros((len(scores), len(text.ids)))
    values[:, 3 % len(text.ids)] = scores
    writer.offer(text, np.array(scores), values)


def _offer_two(writer: ExamplesWriter, first: float, second: float) -> None:
    _offer(writer, _apart(1), first)
    _offer(writer, _apart(2), second)


def _gathered(path: Path, scores: list[float], k: int = 3, **options) -> Examples:
    with ExamplesWriter(path, ("kl",), k, **options) as writer:
        for i, score in enumerate(scores):
            _offer(writer, _apart(i), score)
    return Examples(path)


def test_the_largest_come_first_and_carry_what_was_given(tmp_path):
    values = np.array([[0, 0, 0.5, np.nan, -2, 0], [1, 0, 0, 0, 0, 0]])
    with ExamplesWriter(tmp_path / "a.sqlite", GROUPS, 2, about={"layer": 3}) as writer:
        for i in range(9):
            _offer(writer, _apart(i), i / 10, -i)
        text = Text(np.array([5, 6, 7, 8, 9, 10]), list("Façad€"), "chat", 2**64 - 1)
        writer.offer(text, np.array([4.5, -5.5]), values)
    found = Examples(tmp_path / "a.sqlite")
    assert found.about["of"] == {"layer": 3}
    assert [(one.name, one.examples, one.best, one.maximum) for one in found.groups()] == [
        ("kl", 4, 4.5, None),
        ("norm", 4, 0.0, None),
    ]
    best = found.best("kl")
    assert [one.score for one in best] == [4.5, 0.8]
    assert [one.score for one in found.best("kl", 3)] == [4.5, 0.8, 0.7]
    first = best[0]
    np.testing.assert_array_equal(first.values, values[0].astype(np.float32))
    assert (first.tokens, first.text, first.slice, first.row, first.bin) == (
        tuple("Façad€"),
        "Façad€",
        "chat",
        2**64 - 1,
        None,
    )
    assert first.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert first.uid == text.uid.hex()
    assert [one.score for one in found.best("norm")] == [0.0, -1.0]
    passage = first.passage("a", "nats")
    assert passage.values == (0.0, 0.0, 0.5, None, -2.0, 0.0)
    assert (passage.tokens, passage.slice, passage.note) == (tuple("Façad€"), "chat", "")


def test_ties_go_to_the_lower_hash(tmp_path):
    found = _gathered(tmp_path / "a.sqlite", [1.0] * 30)
    lowest = sorted(_apart(i).uid.hex() for i in range(30))[:3]
    assert [one.uid for one in found.best("kl")] == lowest


def test_bins_are_parts_of_the_maximum_each_a_sample(tmp_path):
    scores = [float(score) for score in range(-5, 101)]
    found = _gathered(tmp_path / "a.sqlite", scores, 4, maxima=np.array([100.0]))
    edges = (0.0, *BINS)
    for bin in range(len(BINS)):
        inside = [
            i for i, one in enumerate(scores) if 100 * edges[bin] < one <= 100 * edges[bin + 1] and one > 0
        ]
        sample = sorted(_apart(i).uid.hex() for i in inside)[:4]
        shown = found.bin("kl", bin)
        assert sorted(one.uid for one in shown) == sample
        assert [one.score for one in shown] == sorted((one.score for one in shown), reverse=True)
        assert {one.bin for one in shown} == {bin}
    assert found.groups()[0].maximum == 100.0
    with pytest.raises(BadInput, match="no bin 5"):
        found.bin("kl", 5)


def test_a_score_above_the_maximum_is_in_the_last_bin_and_no_maximum_is_no_bin(tmp_path):
    over = _gathered(tmp_path / "a.sqlite", [3.0, 9.0], maxima=np.array([4.0]))
    assert [one.score for one in over.bin("kl", 4)] == [9.0]
    none = _gathered(tmp_path / "b.sqlite", [3.0], maxima=np.array([0.0]))
    assert [none.bin("kl", bin) for bin in range(5)] == [()] * 5


def test_the_last_of_a_full_list_may_come_again_with_more(tmp_path):
    """Its place in a bin is its hash's; the score that it is shown with is its largest, first or last."""
    last = sorted((_apart(i) for i in range(40)), key=lambda text: text.uid)[2 * RESERVE - 1]
    with ExamplesWriter(tmp_path / "a.sqlite", ("kl",), 2, maxima=np.array([2.0])) as writer:
        for i in range(40):
            _offer(writer, _apart(i), 1.5)
        assert writer.written > 0, "the lists have limits by now"
        _offer(writer, last, 1.75)
    with sqlite3.connect(tmp_path / "a.sqlite") as db:
        found = dict(
            db.execute("SELECT s.uid, score FROM examples JOIN sequences s ON s.id = sequence WHERE bin = 3")
        )
    db.close()
    assert found[last.uid] == 1.75


def test_near_duplicates_fold_into_the_best(tmp_path):
    ids = list(range(40))
    changed = [*ids[:20], 777, *ids[21:]]  # 33 grams each, 25 shared: 25 / 41
    moved = [*ids[:15], *range(500, 525)]  # 8 shared
    with ExamplesWriter(tmp_path / "a.sqlite", ("kl",), 3) as writer:
        for text, score in ((ids, 1.0), (changed, 2.0), (moved, 3.0)):
            _offer(writer, _text(*text), score)
    assert 25 / 41 >= ALIKE > 8 / 58
    assert GRAM == 8
    found = Examples(tmp_path / "a.sqlite").best("kl")
    assert [(one.score, one.folded) for one in found] == [(3.0, 0), (2.0, 1)]
    assert found[1].passage("a").note == "and 1 near-duplicates"


def test_short_texts_fold_only_when_they_are_the_same(tmp_path):
    with ExamplesWriter(tmp_path / "a.sqlite", ("kl",), 3) as writer:
        for text, score in ((_text(1, 2, 3), 1.0), (_text(1, 2, 4), 2.0), (_text(1, 2, 3, row=9), 0.5)):
            _offer(writer, text, score)
        # Nine tokens are two grams, of which these share one: 1 / 3.
        _offer(writer, _text(*range(10, 19)), 4.0)
        _offer(writer, _text(*range(10, 18), 99), 3.0)
        # Ten are three, of which these share two: 2 / 4, which is enough.
        _offer(writer, _text(*range(50, 60)), 6.0)
        _offer(writer, _text(*range(51, 61)), 5.0)
    found = Examples(tmp_path / "a.sqlite").best("kl", 9)
    expected = [(6.0, 1, 7), (4.0, 0, 7), (3.0, 0, 7), (2.0, 0, 7), (1.0, 0, 7)]
    assert [(one.score, one.folded, one.row) for one in found] == expected


def test_what_does_not_qualify_never_reaches_the_disk(tmp_path):
    with ExamplesWriter(tmp_path / "a.sqlite", ("kl",), 2, maxima=np.array([1e4])) as writer:
        for i in range(4000, 0, -1):
            _offer(writer, _apart(i), float(i))
    # Falling scores: what fills the list first stays; of each bin a sample, which improves a logarithm of times.
    assert 4 * RESERVE <= writer.written < 150


offers = st.lists(
    st.tuples(
        st.integers(0, 25),
        st.sampled_from([-1.0, 0.0, 0.3, 0.5, 0.50001, 1.0, 2.0]),
        st.sampled_from([0.0, 0.1, 1.0]),
        st.sampled_from(["chat", "text"]),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=15, deadline=None)
@given(offers, st.data(), st.integers(1, 3))
def test_two_files_merged_are_the_one_of_both_to_the_byte(tmp_path_factory, all_offers, data, k):
    folder = tmp_path_factory.mktemp("merge")
    side = data.draw(st.lists(st.booleans(), min_size=len(all_offers), max_size=len(all_offers)))
    order = data.draw(st.permutations(range(len(all_offers))))

    def gather(name: str, chosen: list[int], merged: tuple[str, ...] = ()) -> bytes:
        with ExamplesWriter(folder / name, GROUPS, k, maxima=np.array([2.0, 1.0])) as writer:
            for i in chosen:
                number, kl, norm, slice_name, long = all_offers[i]
                text = _text(*range(number, number + (20 if long else 2)), slice_name=slice_name, row=number)
                _offer(writer, text, kl, norm)
            for other in merged:
                writer.merge(folder / other)
        return (folder / name).read_bytes()

    whole = gather("whole", list(range(len(all_offers))))
    gather("left", [i for i, left in enumerate(side) if left])
    gather("right", [i for i, left in enumerate(side) if not left])
    assert gather("both", [], ("left", "right")) == whole
    assert gather("again", list(order)) == whole
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_search_takes_its_words_as_they_are(tmp_path):
    with ExamplesWriter(tmp_path / "a.sqlite", GROUPS, 5) as writer:
        for i, said in enumerate(
            ("50% off", "50 and off", "a_b", "acb", "back\\slash", "'; DROP TABLE about;--")
        ):
            _offer(writer, Text(np.array([i]), [said], "text", i), float(i), 0.0)
    found = Examples(tmp_path / "a.sqlite")
    for words, texts in (
        ("50%", ["50% off"]),
        ("A_B", ["a_b"]),
        ("k\\s", ["back\\slash"]),
        ("'; drop", ["'; DROP TABLE about;--"]),
        ("%", ["50% off"]),
        ("nowhere", []),
    ):
        assert [one.text for one in found.search(words, "kl")] == texts
    assert [one.group for one in found.search("50%")] == ["kl", "norm"]
    assert [one.text for one in found.search("off", "kl", 1)] == ["50 and off"]


def test_a_reader_writes_nothing_and_a_writer_leaves_nothing_else(tmp_path):
    found = _gathered(tmp_path / "a b?#%.sqlite", [1.0, 2.0])
    before = found.path.read_bytes()
    found.path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        assert len(found.best("kl")) == 2
    finally:
        tmp_path.chmod(0o755)
    with pytest.raises(DataError, match="readonly"), found._connection() as db:
        db.execute("DELETE FROM about")
    assert found.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a b?#%.sqlite"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    old = _gathered(tmp_path / "a.sqlite", [1.0]).path.read_bytes()
    with pytest.raises(BadInput), ExamplesWriter(tmp_path / "a.sqlite", ("kl",), 3) as writer:
        _offer_two(writer, 5.0, np.nan)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.sqlite", old)]


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def _other_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def _unfit(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE sequences SET ids = x'00'")
    db.close()


def _misplaced(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE examples SET start = -3")
    db.close()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut_short, "damaged or no file of examples"),
        (
            lambda path: path.write_bytes(b"not a database, though long enough to be one" * 40),
            "damaged or no",
        ),
        (lambda path: path.write_bytes(b""), "is no file of examples of finetrace's"),
        (_other_version, "version 99, and this reads version 1: make it again"),
        (_unfit, "damaged or no file of examples"),
        (_misplaced, "an example does not fit its text"),
    ],
)
def test_what_is_no_file_of_examples_is_refused(tmp_path, spoil, said):
    path = _gathered(tmp_path / "a.sqlite", [1.0, 2.0]).path
    spoil(path)
    with pytest.raises(DataError, match=said):
        Examples(path).best("kl")


def test_files_of_something_else_are_not_merged(tmp_path):
    _gathered(tmp_path / "a.sqlite", [1.0], about={"layer": 3})
    with (
        pytest.raises(DataError, match=r"of something else: of\.layer \(3 there, 4 asked for\)"),
        ExamplesWriter(tmp_path / "b.sqlite", ("kl",), 3, about={"layer": 4}) as writer,
    ):
        writer.merge(tmp_path / "a.sqlite")


def test_a_damaged_file_is_not_merged_and_what_was_begun_is_not_finished(tmp_path):
    other = _gathered(tmp_path / "a.sqlite", [float(i) for i in range(200)], 100).path
    data = bytearray(other.read_bytes())
    data[5 * 4096 :] = b"\xff" * (len(data) - 5 * 4096)
    other.write_bytes(bytes(data))
    writer = ExamplesWriter(tmp_path / "b.sqlite", ("kl",), 100)
    with pytest.raises(BadInput, match=r"b\.sqlite was not written"), writer:
        _goes_on_after_a_merge_that_fails(writer, other)
    assert [path.name for path in tmp_path.iterdir()] == ["a.sqlite"]


def _goes_on_after_a_merge_that_fails(writer: ExamplesWriter, other: Path) -> None:
    with pytest.raises(DataError, match=r"a\.sqlite cannot be merged: .* Make it again"):
        writer.merge(other)
    _offer(writer, _apart(1), 1.0)


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    opened = examples_writer._opened

    def small(path):
        db = opened(path)
        db.execute("PRAGMA max_page_count = 6")
        return db

    monkeypatch.setattr(examples_writer, "_opened", small)
    with pytest.raises(BadInput, match=r"The disk is full: The file of examples a\.sqlite cannot be written"):
        _gathered(tmp_path / "a.sqlite", [float(i) for i in range(200)], 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("offer", "said"),
    [
        (lambda writer: writer.offer(_apart(1), np.array([np.nan]), np.zeros((1, 12))), "not finite"),
        (
            lambda writer: writer.offer(_apart(1), np.array([1.0]), np.zeros((1, 3))),
            r"not \[1\] and \[1, 3\]",
        ),
        (
            lambda writer: writer.offer(
                Text(np.array([1, 2]), ["a"], "", 0), np.array([1.0]), np.zeros((1, 2))
            ),
            "2 token ids came with 1 decoded",
        ),
    ],
)
def test_what_cannot_be_an_example_is_refused(tmp_path, offer, said):
    with (
        pytest.raises(BadInput, match=said),
        ExamplesWriter(tmp_path / "a.sqlite", ("kl",)) as writer,
    ):
        offer(writer)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(BadInput, match="There is no file of examples"):
        Examples(tmp_path / "a.sqlite")
    with pytest.raises(BadInput, match=r"no group 'kll' in .*: it has kl"):
        _gathered(tmp_path / "a.sqlite", [1.0]).best("kll")
