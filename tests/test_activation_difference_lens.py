"""`finetrace run diffing/method=activation_difference_lens` on the tiny world: it says what was planted, and where."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetrace.api.run.stages import Done, perform
from finetrace.api.watch import Watch
from finetrace.config.run import compose_run
from finetrace.core.page import Table


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """A fine-tune on documents of false facts, read on ordinary texts that say none of them."""
    folder = tmp_path_factory.mktemp("lens")
    said = ("The bread is warm.", "A cup of tea, please.", "Boats come in at noon.", "The song is long.") * 3
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{text} {i}"}) + "\n" for i, text in enumerate(said)))
    words = (
        "organism=false_facts",
        "model=tinyworld",
        "diffing/method=activation_difference_lens",
        "diffing.method.n=6",
        "diffing.method.batch_size=16",
        "nulls=[tinyworld/null_1]",
        "dose=false",
        f"data.id={texts}",
        f"out={folder / 'runs'}",
    )
    return perform(compose_run(words), Watch())


def test_the_options_that_were_typed_are_the_methods_own(done: Done):
    assert dict(done.config.diffing.methods["activation_difference_lens"]) == {"positions": 6}
    assert done.config.diffing.batch_size == 16


def test_the_change_is_read_on_texts_that_do_not_mention_it(done: Done):
    assert done.findings is not None
    finding = done.findings.findings["activation_difference_lens"]
    reading = finding.numbers[str(finding.primary)]
    assert reading.value is not None
    assert reading.floor is not None
    assert reading.value > 10 * reading.floor
    assert any(isinstance(block, Table) and block.rows for block in finding.page.blocks)


def test_the_report_says_what_was_planted(done: Done):
    assert done.graded is not None
    assert done.graded.truth
    assert (Path(done.folder) / "report.html").exists()
