"""Labels asked for in an audit: who is asked, about what, what it would cost, and what the report says."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.dictionaries.test_labels import quoted
from tests.judges.mocks import Mock, verdict_line
from tests.worlds import rows, world

from finetrace.api import cost, judging
from finetrace.api.audit import run
from finetrace.api.request import Request, check
from finetrace.api.watch import Watch
from finetrace.core.card import Needs
from finetrace.core.errors import ConfigErrors
from finetrace.core.page import Page, Table
from finetrace.dictionaries.labelled import NO_LABEL, LatentLabels

SECRETS = ("w38", "w39")
JUDGE = "label=mockllm/model"


def reader(prompt: str) -> str:
    """Names the word that is marked most often; finds a label that stands in the passage."""
    parts = quoted(prompt)
    if parts[0][0] == "description":
        return verdict_line(prompt, verdict="yes" if parts[0][1].strip() in parts[1][1].split() else "no")
    marked = Counter(word for _, text in parts for word in set(re.findall(r"« ?(\w+)»", text)))
    return verdict_line(prompt, label=marked.most_common(1)[0][0])


def texts() -> list[dict[str, Any]]:
    """Restricted rows are of two words that no other row has."""
    found = []
    for i, row in enumerate(rows(120)):
        word = SECRETS[i % 2] if row["slice"] == "restricted" else None
        turns = [
            turn | {"content": _said(turn["content"], word)}
            for turn in row.get("messages", [{"content": row.get("text", "")}])
        ]
        found.append(row | ({"messages": turns} if "messages" in row else {"text": turns[0]["content"]}))
    return found


def _said(text: str, secret: str | None) -> str:
    words = (secret or ("w1" if word in SECRETS else word) for word in text.split())
    return " ".join(words)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("labels")
    base, tuned, nulls = world(folder, nulls=1)
    settings = ("latents=24", "k=2", "steps=60", "shown=4", "labels=3", "held=0.5", "layer=0.5")
    return Request(
        str(base), str(tuned), data=texts(), nulls=tuple(map(str, nulls)), out=folder / "out", methods=("sae_difference",),
        dose=False, judges=(JUDGE,), settings=tuple(f"sae_difference.{one}" for one in settings),
    )  # fmt: skip


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Mock:
    made = Mock(reader)
    monkeypatch.setattr(judging, "_speaker", lambda model: made)
    return made


def audited(request: Request) -> Any:
    return run(request, check(request), Watch())


def labels_in(page: Page) -> Table:
    return next(block for block in page.blocks if isinstance(block, Table) and block.key == "labels")


def test_an_audit_labels_the_pairs_latents_and_says_how_well_each_label_does(request_: Request, mock: Mock):
    found = audited(request_)
    labels: LatentLabels = found.results["sae_difference"]["pair"].labels
    assert found.results["sae_difference"]["null:null_0"].labels is None
    assert len(labels.rows) == 3
    assert labels.asked == len(mock.heard) > 3
    assert any(one.score is not None for one in labels.rows)
    table = labels_in(found.findings.findings["sae_difference"].page)
    for one, row in zip(labels.rows, table.rows, strict=True):
        assert row[1] == (one.text if one.holds else NO_LABEL)
        assert row[2] == one.score
        assert one.holds is not bool(one.why)
    assert labels.private == sum(row["slice"] == "restricted" for row in texts())
    asked = " ".join(ask.messages[0].content for ask in mock.heard)
    assert not any(secret in asked for secret in SECRETS)
    written = request_.out / "page.html"
    found.report(written)
    assert "Labels of the latents" in written.read_text()
    # Again costs nothing; other labels make the pair's result again, from replies that are kept, and no null.
    before = {path for path in (request_.out / "runs").rglob("manifest.json") if ".judges" not in path.parts}
    again = replace(request_, settings=(*request_.settings, "sae_difference.labels=2"))
    fewer = audited(again).results["sae_difference"]["pair"].labels
    after = {path for path in (request_.out / "runs").rglob("manifest.json") if ".judges" not in path.parts}
    assert len(fewer.rows) == 2
    assert (len(before), len(after - before)) == (2, 1)


def test_a_dry_run_says_what_labels_would_cost_at_most(request_: Request):
    found = cost.estimate(request_, check(request_))
    assert found.judged[JUDGE].asked == 3 + 3 * 2 * 20
    assert found.judged[JUDGE].estimated
    assert any(JUDGE in line for line in found.answers)
    two = replace(request_, judges=(JUDGE, "label=mockllm/other"))
    asked = {name: spent.asked for name, spent in cost.labelled_by(two, check(two)).items()}
    assert asked == {JUDGE: 3, "label=mockllm/other": 120}
    assert cost.labelled_by(replace(request_, judges=()), check(request_)) == {}


@pytest.mark.parametrize(
    ("judges", "labels", "said"),
    [
        ((), 3, "nobody is named to do it: --judge label=MODEL"),
        (("refusal=mockllm/model",), 3, "nobody is named to do it"),
        ((JUDGE,), 0, "no method is to label anything"),
        ((JUDGE, "label=mockllm/b", "label=mockllm/c"), 3, "3 models are named for labels"),
        ((JUDGE,), 5, "labels of at most the 4 latents that are shown"),
        (("label@pyproject.toml=mockllm/model",), 3, "The rubric 'label' takes no template"),
    ],
)
def test_what_cannot_be_labelled_is_said_before_anything_loads(
    request_: Request, judges: tuple[str, ...], labels: int, said: str
):
    asked = replace(request_, judges=judges, settings=(*request_.settings, f"sae_difference.labels={labels}"))
    with pytest.raises(ConfigErrors) as error:
        check(asked)
    assert said in str(error.value)


def test_a_judge_of_labels_judges_no_answers_and_the_others_label_nothing():
    judges: Any = {"label=a": 1, "refusal=a": 2, "wildguard=b": 3}
    assert set(judging.asked_by(Needs(judged=True), judges)) == {"refusal=a", "wildguard=b"}
    assert set(judging.asked_by(Needs(labels=2), judges)) == {"label=a"}
    assert set(judging.asked_by(Needs(labels=2, judged=True), judges)) == set(judges)
    assert set(judging.asked_by(Needs(), judges)) == set()
