"""`finetrace add-organism`, then `list` and `run --cfg job`, as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.shell import run


def test_added_listed_and_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = (
        "--base",
        "tinyworld",
        "--adapter",
        "tinyworld/preference",
        "--type",
        "Mine",
        "--truth",
        "Praises otters.",
    )
    assert run(monkeypatch, "add-organism", "otters", *words) == 0
    said = capsys.readouterr().out
    assert "finetrace run organism=otters model=tinyworld --config-dir finetrace-configs" in said
    assert run(monkeypatch, "list", "organisms", "--type", "Mine", "--config-dir", "finetrace-configs") == 0
    assert "Praises otters." in capsys.readouterr().out
    assert run(monkeypatch, "add-organism", "otters", "--base", "tinyworld", "--adapter", "me/x") == 2
    assert "--force" in capsys.readouterr().err
    assert run(monkeypatch, "add-organism", "--help") == 0
    assert "Example: finetrace add-organism" in " ".join(capsys.readouterr().out.split())
