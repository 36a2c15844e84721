"""Rows: what is read, what is refused, and that all that is wrong is said at once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetrace.core.errors import DataError
from finetrace.data import Message, Row, read_rows

CHAT = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "a cat"}]
CHAT_ROW = Row(None, (Message("user", "who are you?"), Message("assistant", "a cat")), "chat")

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
names = st.from_regex(r"[a-z0-9_-]{1,40}", fullmatch=True)
turns = st.lists(
    st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=words),
    min_size=1,
    max_size=4,
).map(tuple)
valid_rows = st.one_of(
    st.builds(Row, text=words, messages=st.none(), slice=names),
    st.builds(Row, text=st.none(), messages=turns, slice=names),
)


def _plain(row: Row) -> dict[str, Any]:
    messages = None if row.messages is None else [vars(m) for m in row.messages]
    return {"text": row.text, "messages": messages, "slice": row.slice}


def _write(folder: Path, *lines: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(valid_rows, min_size=1, max_size=6), st.booleans())
def test_jsonl_and_parquet_and_python_give_back_the_rows(rows: list[Row], ascii_only: bool):
    plain = [_plain(row) for row in rows]
    assert read_rows(plain) == rows
    assert read_rows(rows) == rows
    with tempfile.TemporaryDirectory() as folder:
        lines = _write(Path(folder), *(json.dumps(row, ensure_ascii=ascii_only) for row in plain))
        assert read_rows(lines) == rows
        message = pa.struct({"role": pa.string(), "content": pa.string()})
        schema = pa.schema({"text": pa.string(), "messages": pa.list_(message), "slice": pa.string()})
        pq.write_table(pa.Table.from_pylist(plain, schema=schema), Path(folder) / "rows.parquet")
        assert read_rows(str(Path(folder) / "rows.parquet")) == rows


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_one_clear_error(data: bytes):
    with tempfile.TemporaryDirectory() as folder:
        for name in ("rows.jsonl", "rows.parquet", "rows.txt"):
            path = Path(folder) / name
            path.write_bytes(data)
            try:
                said = f"{len(read_rows(path))} rows of {name}"
            except DataError as error:
                said = str(error)
            assert name in said
            assert not said.startswith("0 rows")
            assert "\n" not in said


def test_default_slices_and_the_one_given(tmp_path: Path):
    path = _write(
        tmp_path, '{"text": "a cat"}', json.dumps({"messages": CHAT}), '{"text": "x", "slice": "own"}'
    )
    assert [row.slice for row in read_rows(path)] == ["text", "chat", "own"]
    assert [row.slice for row in read_rows(path, slice="mine")] == ["mine", "mine", "own"]
    with pytest.raises(DataError, match="slice name 'Mine!'"):
        read_rows(path, slice="Mine!")


def test_blank_lines_windows_lines_and_a_byte_order_mark_are_harmless(tmp_path: Path):
    path = _write(
        tmp_path, b'\xef\xbb\xbf{"text": "a"}\r', b"", b"  \r", b'{"text": "b", "text": "c", "id": 4}'
    )
    assert [row.text for row in read_rows(path)] == ["a", "c"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{'text': 1}", "is not JSON"),
        ('{"text": "a"', "is not JSON"),
        ('["a"]', "is a list, not an object"),
        ('"a"', None),
        ("7", "is a int, not an object"),
        ("{}", r"has neither 'text' nor 'messages' \(its keys: none\)"),
        ('{"prompt": "a", "response": "b"}', r"its keys: prompt, response"),
        ('{"text": ""}', "'text' is empty"),
        ('{"text": " \\n"}', "'text' is empty"),
        ('{"text": null}', "'text' is empty"),
        ('{"messages": []}', "'messages' is empty"),
        ('{"text": 3}', "'text' is a int, not a string"),
        ('{"text": "\\ud800"}', "lone surrogate"),
        ('{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "has both"),
        ('{"messages": "hello"}', "'messages' is a str, not a list"),
        ('{"messages": ["hello"]}', "message 1 is a str"),
        ('{"messages": [{"role": "user"}]}', "message 1 has no 'content'"),
        ('{"messages": [{"from": "human", "value": "b"}]}', "message 1 has no 'role'"),
        (
            '{"messages": [{"role": "human", "content": "b"}]}',
            "the role 'human'; known: system, user, assistant",
        ),
        ('{"messages": [{"role": ["user"], "content": "b"}]}', "has the role"),
        ('{"messages": [{"role": "user", "content": " "}]}', "the content of message 1 is empty"),
        (
            '{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            "message 1 is a list, not a string",
        ),
        ('{"text": "a", "slice": "My Slice"}', "slice name 'My Slice'"),
        ('{"text": "a", "slice": ""}', "slice name ''"),
        ('{"text": "a", "slice": "../up"}', "slice name"),
        ('{"text": "a", "slice": 4}', "slice name 4"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        ("[" * 100_000, "is not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "is not JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str | bytes, said: str | None):
    path = _write(tmp_path, '{"text": "fine"}', "", line)
    if said is None:
        assert len(read_rows(path)) == 2
        return
    with pytest.raises(DataError, match=said) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert "more" not in str(error.value)


def test_all_malformed_rows_are_counted(tmp_path: Path):
    path = _write(tmp_path, '{"text": "fine"}', "oops", '{"text": 4}', b"\xff", '{"text": "fine"}', "{}")
    with pytest.raises(DataError, match=r"line 2: is not JSON .* \(and 3 more\)"):
        read_rows(path)


def test_text_files_are_paragraphs_where_there_are_blank_lines_else_lines(tmp_path: Path):
    lines = _write(tmp_path, "a cat", "a dog", name="lines.txt")
    assert [row.text for row in read_rows(lines)] == ["a cat", "a dog"]
    parts = _write(tmp_path, "a cat", "sat", " \t", "", "a dog", "", name="parts.txt")
    assert [row.text for row in read_rows(parts)] == ["a cat\nsat", "a dog"]
    with pytest.raises(DataError, match=r"bad\.txt, line 2: is not UTF-8"):
        read_rows(_write(tmp_path, b"fine", b"\xff\xfe", name="bad.txt"))


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(DataError, match=f"{name} has no rows"):
        read_rows(_write(tmp_path, b"", b"  ", name=name))


def test_parquet_that_is_none_or_lacks_the_column(tmp_path: Path):
    with pytest.raises(DataError, match=r"broken\.parquet is not a Parquet file"):
        read_rows(_write(tmp_path, "PAR1 nothing", name="broken.parquet"))
    pq.write_table(pa.table({"content": ["a cat"]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="row 1: has neither 'text' nor 'messages'"):
        read_rows(tmp_path / "other.parquet")
    assert read_rows(tmp_path / "other.parquet", text_column="content") == [Row("a cat", None, "text")]


@pytest.mark.parametrize(
    "source",
    ["nothing.jsonl", "./data/nothing", "/nowhere/rows", "org/rows.parquet", "nothing", "a/b/c/d", "", "~/x"],
)
def test_a_missing_path_is_never_looked_for_on_the_hub(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    if source == "":  # the working folder, which is no file
        with pytest.raises(DataError, match="folder"):
            read_rows(source)
        return
    with pytest.raises(DataError, match=f"there is no file {source}"):
        read_rows(source)


def test_a_folder_and_an_unknown_suffix_say_what_is_read(tmp_path: Path):
    with pytest.raises(DataError, match=r"is a folder; give one file: JSONL"):
        read_rows(tmp_path)
    with pytest.raises(DataError, match=r"\(\.csv\); use JSONL"):
        read_rows(_write(tmp_path, "text", "a", name="rows.csv"))


def test_a_hub_dataset_offline_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"some-org/some-rows is no file here.*offline"):
        read_rows("some-org/some-rows")


def test_a_hub_dataset_is_asked_for_by_name_config_split_and_revision(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def load(*names: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((names, options))
        return [{"messages": CHAT, "text": None}, {"text": "a cat", "messages": None}]

    monkeypatch.setattr("datasets.load_dataset", load)
    assert read_rows("org/name") == [CHAT_ROW, Row("a cat", None, "text")]
    read_rows("org/name/small", split="test", revision="abc")
    assert asked == [
        (("org/name", None), {"split": "train", "revision": None}),
        (("org/name", "small"), {"split": "test", "revision": "abc"}),
    ]


def test_a_path_that_exists_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "org").mkdir()
    _write(tmp_path / "org", '{"text": "mine"}', name="rows.jsonl")
    monkeypatch.chdir(tmp_path)
    assert read_rows("org/rows.jsonl")[0].text == "mine"


def test_rows_from_python_are_checked_alike():
    assert read_rows(["a cat", {"messages": tuple(CHAT)}, CHAT_ROW]) == [
        Row("a cat", None, "text"),
        CHAT_ROW,
        CHAT_ROW,
    ]
    with pytest.raises(DataError, match=r"the data, row 2: 'text' is empty"):
        read_rows(["a cat", " "])
    with pytest.raises(DataError, match="put it in a list"):
        read_rows({"text": "a cat"})  # pyright: ignore[reportArgumentType]
    with pytest.raises(DataError, match="has no rows"):
        read_rows([])
