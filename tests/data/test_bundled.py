"""The neutral samples: enough of them, varied, and readable by every model."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from tests.data.samples import TEMPLATES, byte_tokenizer

from finetrace.data import build_corpus, bundled_rows


def test_there_are_a_few_hundred_distinct_rows_in_two_slices():
    rows = bundled_rows()
    count = Counter(row.slice for row in rows)
    assert set(count) == {"text", "chat"}
    assert min(count.values()) >= 160
    assert len({(row.text, row.messages) for row in rows}) == len(rows)
    lengths = [len(row.text.split()) for row in rows if row.text is not None and "  " not in row.text]
    assert min(lengths) >= 25
    assert max(lengths) <= 70


@pytest.mark.parametrize("template", [*TEMPLATES.values(), None])
def test_every_template_takes_them(template: str | None):
    """No system message and strict turns: Gemma's template refuses anything else."""
    corpus = build_corpus(bundled_rows(), byte_tokenizer(chat_template=template))
    assert (len(corpus), corpus.too_short, corpus.truncated) == (len(bundled_rows()), 0, 0)
    for row in bundled_rows():
        roles = [message.role for message in row.messages or ()]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_reading_them_loads_no_torch_and_no_transformers():
    code = (
        "import sys; from finetrace.data import bundled_rows, shards, build_corpus; bundled_rows(); "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
