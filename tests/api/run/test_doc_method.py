"""The method of docs/add-a-method.md, as it stands there: installed, listed, run, and held to what every method is held to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.worlds import rows, world

from finetrace.api.run.stages import Done, perform
from finetrace.api.watch import Watch
from finetrace.config.run import compose_run
from finetrace.core.card import discover

PAGE = Path(__file__).resolve().parents[3] / "docs" / "add-a-method.md"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory):
    """A run of it on a pair of tiny models, out of a package that says where it is as pip would have it."""
    folder = tmp_path_factory.mktemp("method")
    for name, code in re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    (folder / "my_methods" / "__init__.py").touch()
    (named,) = re.findall(
        r"^\[project\.entry-points\.\"finetrace\.methods\"\]\n(.*)$", PAGE.read_text(), re.M
    )
    info = folder / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[finetrace.methods]\n{named.replace(chr(34), '')}\n")
    base, tuned, _ = world(folder, nulls=0)
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(24)))
    own = folder / "own"
    for kind, text in {
        "model": f"name: small\nmodel_id: {base}\n",
        "organism": f"name: mine\nfinetuned_models: {{small: {{default: {{adapter_id: {tuned}}}}}}}\n",
    }.items():
        (own / kind).mkdir(parents=True)
        (own / kind / f"{'small' if kind == 'model' else 'mine'}.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        words = ("organism=mine", "diffing/method=[kl,entropy]", "diffing.method.entropy.skip=2")
        texts = (f"data.id={folder / 'texts.jsonl'}", f"out={folder / 'out'}", "pipeline.mode=diffing")
        yield perform(compose_run((*words, *texts), own), Watch())


def test_it_is_found_and_its_option_arrives(done: Done):
    cards, broken = discover()
    assert "entropy" in cards
    assert "entropy" not in [one.name for one in broken]
    assert dict(done.config.diffing.methods["entropy"]) == {"skip": 2}


def test_it_finds_a_change_where_there_is_one_and_none_on_the_base_itself(done: Done):
    assert done.findings is not None
    found = done.findings.findings["entropy"]
    reading = found.numbers["entropy_moved_mean"]
    assert reading.value is not None
    assert reading.floor is not None
    assert reading.value > 1000 * reading.floor
    assert abs(found.numbers["entropy_change_mean"].value or 0) <= reading.value
    # Two leading positions of each text are left out.
    assert reading.estimate.n < done.findings.findings["kl"].numbers["kl_mean"].estimate.n


def test_its_page_is_in_the_report(done: Done):
    page = (done.folder / "report.html").read_text()
    assert "Entropy moved" in page
    assert "certain of the next token" in page
