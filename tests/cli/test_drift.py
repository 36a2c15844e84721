"""`finetrace drift` as typed: help, what is there, and mistakes."""

from __future__ import annotations

import pytest
from tests.cli.shell import run


def test_what_is_there_is_told(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, "drift", "check", "--out", tmp_path / "drift") == 0
    told = capsys.readouterr().out
    assert all(
        f"ok      {name}: " in told
        for name in ("libraries", "data", "sets", "model", "memory", "disk", "scratch")
    )
    assert not (tmp_path / "drift").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["analyse"], "Did you mean 'analyze'"),
        (["all", "snip.top_k=1"], "snip.top_k is 1.0; it must be a share above 0 and below 1"),
        (["all", "--seeds", "0"], "--seeds is 0"),
        (["all", "lorra.r=3"], "There is no setting 'lorra.r'"),
        (["analyze"], "run the phases `scores` and `groups` first"),
        (["all", "--safety-set", "nothing.jsonl"], "does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(monkeypatch, tmp_path, capsys, words, said):
    assert run(monkeypatch, "drift", *words, "--out", tmp_path / "drift") == 2
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told
