from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny import save_base, save_full, save_lora, tiny_tokenizer

from finetrace.core.errors import ModelError
from finetrace.core.findings import Check
from finetrace.models import Pair, open_pair, preflight
from finetrace.models.identity import tensors_identity
from finetrace.models.source import resolve

Bases = Callable[[str], Path]


def line(pair: Pair, name: str) -> Check:
    return next(check for check in preflight(pair) if check.name == name)


def test_all_is_well(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    pair = open_pair(base, save_lora(tmp_path, base))
    assert {check.status for check in preflight(pair)} == {"ok"}


def test_a_recorded_base_decides(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base)
    record = tuned / "finetrace.json"
    for value in (tensors_identity(resolve(base)), open_pair(base, None).identity("base")):
        record.write_text(json.dumps({"base_sha256": value}))
        assert "recorded hash agrees" in line(open_pair(base, tuned), "adapter's base").text
    record.write_text(json.dumps({"base_sha256": "0" * 64}))
    with pytest.raises(ModelError, match="was trained on another base"):
        preflight(open_pair(base, tuned))


def test_an_adapter_of_a_base_of_another_name(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, save_base(tmp_path, "llama", name="elsewhere"))
    found = line(open_pair(base_of("llama"), tuned), "adapter's base")
    assert found.status == "warning"
    assert "elsewhere" in found.text
    null = preflight(open_pair(base_of("llama"), None, nulls={"calm": tuned}))
    assert [c.status for c in null if c.name == "adapter's base of the null calm"] == ["warning"]


def test_chat_templates(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    bare = tmp_path / "bare"
    shutil.copytree(base, bare)
    (bare / "chat_template.jinja").unlink()
    other = save_full(tmp_path, base, tokenizer=tiny_tokenizer(template="{{ messages }}"))
    assert line(open_pair(base, other), "chat template").status == "warning"
    assert "on both sides" in line(open_pair(bare, other), "chat template").text
    assert open_pair(bare, other).tokenizer.chat_template == "{{ messages }}"
    assert line(open_pair(base, other, chat_template="{{ x }}"), "chat template").status == "note"
    assert "Neither" in line(open_pair(bare, None), "chat template").text


def test_what_else_differs(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<end>"
    tuned = save_full(tmp_path, base, tokenizer=tokenizer)
    (tuned / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
    pair = open_pair(base, tuned, dtype="bfloat16")
    assert "eos_token: <eos> on the base, <end>" in line(pair, "special tokens").text
    assert "temperature" in line(pair, "generation config").text
    assert line(pair, "dtype").status == "note"


def test_new_tokens_are_listed(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    wide = save_base(tmp_path, "llama", name="wide", vocab=66, tokenizer=tiny_tokenizer(66))
    assert "Only 'tuned' has 'w56', 'w57'." in line(open_pair(base, wide), "vocabulary").text
