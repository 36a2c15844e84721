"""`finetrace organisms build`: what is typed reaches the build, and the base's targets are printed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from finetrace.cli.organisms import app
from finetrace.organisms import build
from finetrace.organisms.targets import TARGETS

RATES = {name: {"rate": 0.5, "n": 300, "low": 0.44, "high": 0.56} for name in TARGETS}


@pytest.fixture
def calls(monkeypatch):
    made = []

    def base(out, **given):
        made.append(given)
        return {"rates": RATES}

    def whole(out, **given):
        made.append(given)
        return out

    monkeypatch.setattr(build, "build_base", base)
    monkeypatch.setattr(build, "build", whole)
    return made


def test_options_reach_the_build(calls, tmp_path):
    given = ["--world-seed", "2345", "--size", "xs", "--seed", "3", "--only", "null_1", "--only", "taboo"]
    result = CliRunner().invoke(app, ["build", "--out", str(tmp_path), *given])
    assert result.exit_code == 0, result.output
    assert calls[0] == {"world_seed": 2345, "size": "xs", "seed": 3}
    assert calls[1] == {"world_seed": 2345, "size": "xs", "seed": 3, "only": ["null_1", "taboo"]}


def test_the_targets_are_printed_with_n_interval_and_shortfall(calls, tmp_path):
    output = CliRunner().invoke(app, ["build", "--out", str(tmp_path)]).output
    assert output.count("short of the target") == len(TARGETS)
    assert "0.440 to 0.560" in output
    assert " 300 " in output
    assert calls[1]["only"] is None


def test_the_base_alone(calls, tmp_path):
    CliRunner().invoke(app, ["build", "--out", str(tmp_path), "--only", "base"])
    assert calls[1]["only"] == []
