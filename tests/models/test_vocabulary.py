"""Two vocabularies as one: new tokens, padding rows, other orders, strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import SPECIAL, save_base, save_full, save_lora, tiny_tokenizer

from finetrace.core.errors import ModelError
from finetrace.models import check_head, open_pair
from finetrace.models.vocabulary import align

WORDS = [f"w{n}" for n in range(56)]


def reordered(tmp_path: Path, base: Path, order: list[int]) -> Path:
    """The base with token i at row order.index(i): the same model under other ids."""
    names = [*SPECIAL, *WORDS]
    tuned = save_full(tmp_path, base, touch=[])
    weights = load_file(tuned / "model.safetensors")
    key = "model.embed_tokens.weight"
    weights[key] = weights[key][torch.tensor(order)].contiguous()
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    retokenised(tuned, [names[row] for row in order])
    return tuned


def retokenised(folder: Path, names: list[str]) -> None:
    """Writes the tiny tokenizer with names[i] as token i."""
    tiny_tokenizer(64, words=WORDS).save_pretrained(str(folder))
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    table = {name: row for row, name in enumerate(names)}
    fields["model"]["vocab"] = table
    for token in fields["added_tokens"]:
        token["id"] = table[token["content"]]
    fields["post_processor"]["special_tokens"]["<bos>"]["ids"] = [table["<bos>"]]
    path.write_text(json.dumps(fields))


def test_the_same_model_under_other_ids_is_the_same_model(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    order = [*range(10), *reversed(range(10, 64))]
    pair = open_pair(base, reordered(tmp_path, base, order))
    ids = torch.randint(8, 64, (2, 9))
    one, other = (pair.trunk(side, ids, torch.ones_like(ids)).final for side in ("base", "tuned"))
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    assert torch.equal(pair.head("base").weight, pair.head("tuned").weight)
    assert pair.same_head("tuned")
    assert pair.vocab_size == 64
    check_head(pair)


def test_tokens_that_one_side_added(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    wide = save_base(tmp_path, "llama", name="wide", vocab=70, tokenizer=tiny_tokenizer(68))
    pair = open_pair(base, wide)
    found = pair.alignment("tuned")
    assert found is not None
    assert pair.vocab_size == 64
    assert found.only_side == ("w56", "w57", "w58", "w59")
    assert found.only_base == ()
    assert pair.head("tuned").weight.shape == (64, 32)
    check_head(pair)


def test_tokens_that_only_the_base_has(tmp_path: Path) -> None:
    wide = save_base(tmp_path, "llama", name="wide", vocab=70, tokenizer=tiny_tokenizer(68))
    pair = open_pair(wide, save_base(tmp_path, "llama"))
    assert pair.vocab_size == 64
    assert pair.shared_ids is not None
    assert pair.shared_ids.tolist() == list(range(64))
    assert pair.shared_index(torch.tensor([3, 66])).tolist() == [3, -1]
    assert pair.head("base").weight.shape == (64, 32)
    check_head(pair)
    ids = torch.tensor([[1, 9, 66]])
    with pytest.raises(ModelError, match="holds the token 'w58'"):
        pair.trunk("tuned", ids, torch.ones_like(ids))


def test_a_row_that_an_adapters_tokenizer_names_is_still_the_bases(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", vocab=70, tokenizer=tiny_tokenizer(64))
    tuned = save_lora(tmp_path, base)
    tiny_tokenizer(65).save_pretrained(str(tuned))
    pair = open_pair(base, tuned)
    found = pair.alignment("tuned")
    assert found is not None
    assert pair.vocab_size == 70
    assert found.only_side == ("w56",)
    check_head(pair)


def test_strangers(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    words = [f"other{n}" for n in range(56)]
    other = save_base(tmp_path, "llama", name="other", seed=1, tokenizer=tiny_tokenizer(64, words=words))
    with pytest.raises(ModelError, match=r"cannot be aligned .* only 8 of 64"):
        open_pair(base, other).load()


def test_tokenizers_that_split_differently(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama")
    other = save_full(tmp_path, base, tokenizer=_by_punctuation())
    with pytest.raises(ModelError, match=r"cannot be aligned .* its tokenizer splits"):
        open_pair(base, other).load()


def _by_punctuation() -> Any:
    from tokenizers import pre_tokenizers

    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_padding_rows_without_a_name_stay() -> None:
    table = {"a": 0, "b": 1}
    assert align(table, table, 4, 4, one_head=False, name="x").base_rows is None
    found = align(table, table, 4, 3, one_head=False, name="x")
    assert found.base_rows is not None
    assert found.base_rows.tolist() == [0, 1, 2]


def test_a_row_named_on_one_side_is_not_shared_by_two_heads() -> None:
    found = align({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2}, 4, 4, one_head=False, name="x")
    assert found.base_rows is not None
    assert found.base_rows.tolist() == [0, 1, 3]
    assert align({"a": 0, "b": 1}, {"a": 0, "b": 1, "c": 2}, 4, 4, one_head=True, name="x").base_rows is None
