"""Which tokens are trained on, what truncation did, and that packing changes no loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.core.errors import DataError, ModelError
from finetrace.data.examples import Example
from finetrace.finetune.batches import Collator, Order, Packed, pack, prepare
from finetrace.finetune.model import check_packing, takes_positions, target_losses

CHAT = {
    "messages": [
        {"role": "system", "content": "w1"},
        {"role": "user", "content": "w2 w3"},
        {"role": "assistant", "content": "w4 w5"},
        {"role": "user", "content": "w6"},
        {"role": "assistant", "content": "w7"},
    ]
}
SHORT = {"messages": [{"role": "user", "content": "w8"}, {"role": "assistant", "content": "w9"}]}
TEXT = {"text": "w1 w2 w3"}


def said(tokenizer, row_labels) -> list[str]:
    return tokenizer.convert_ids_to_tokens([int(t) for t in row_labels if t >= 0])


def example(length: int, first: int = 5) -> Example:
    loss = np.ones(length, dtype=bool)
    loss[0] = False
    return Example(np.arange(first, first + length, dtype=np.int32) % 60, loss)


def test_no_prompt_and_no_padding_is_trained_on():
    tokenizer = tiny_tokenizer()
    batch = Collator(0)(prepare([CHAT, SHORT, TEXT], tokenizer, 64).examples)
    assert said(tokenizer, batch["labels"][0]) == ["w4", "w5", "<end>", "w7", "<end>"], (
        "both turns, and their ends"
    )
    assert said(tokenizer, batch["labels"][1]) == ["w9", "<end>"]
    assert said(tokenizer, batch["labels"][2]) == ["w2", "w3", "<eos>"], "a text counts all, and its end"
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == -100).all()
    assert (batch["input_ids"][padding] == 0).all()
    assert (batch["labels"][:, 0] == -100).all()


def test_padding_with_the_end_token_hides_no_end():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    batch = Collator(tokenizer.pad_token_id)(prepare([CHAT, TEXT], tokenizer, 64).examples)
    assert said(tokenizer, batch["labels"][1])[-1] == "<eos>"
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 1


def test_what_truncation_did_is_counted():
    tokenizer = tiny_tokenizer()
    longest = len(prepare([CHAT], tokenizer, 64).examples[0])
    found = prepare([CHAT, SHORT], tokenizer, 10)
    assert (found.truncation.rows, found.truncation.cut, found.truncation.shortened) == (2, 1, 1)
    assert (found.truncation.dropped, found.truncation.longest) == (0, longest)
    assert found.truncation.targets == sum(e.loss.sum() for e in found.examples)
    dropped = prepare([CHAT, SHORT], tokenizer, 6)
    assert dropped.truncation.dropped == 1
    assert len(dropped.examples) == 1
    assert "1 lose all of it and are left out" in dropped.truncation.told()
    assert "none is longer" in prepare([CHAT], tokenizer, 64).truncation.told()


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"raise data\.max_tokens"):
        prepare([CHAT], tiny_tokenizer(), 4)
    with pytest.raises(DataError, match="row 2 has nothing to learn"):
        prepare([CHAT, {"messages": [{"role": "user", "content": "w1"}]}], tiny_tokenizer(), 64)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 20), min_size=1, max_size=40))
def test_packing_keeps_every_sample_once_and_fits(lengths):
    samples = [example(length, first=number) for number, length in enumerate(lengths)]
    packed = pack(samples, 20)
    assert sorted(id(part) for item in packed for part in item.parts) == sorted(map(id, samples))
    assert all(len(item) <= 20 for item in packed)
    assert len(packed) <= max(1, 2 * sum(lengths) / 20 + 1), "no two half-empty sequences"


def test_order_is_of_seed_and_epoch():
    order = Order(50, 3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    order.set_epoch(0)
    assert list(order) == first != second
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(Order(50, 4)) != first


@pytest.mark.parametrize(
    ("family", "attention"),
    [(f, a) for f in ("llama", "gpt2", "gemma3", "mistral") for a in ("sdpa", "eager")]
    + [("gemma2", "eager")],
)
def test_packed_losses_are_those_of_rows_alone(family, attention):
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    samples = [
        example(length, first) for length, first in ((21, 3), (5, 9), (30, 1), (9, 40), (2, 7), (20, 11))
    ]
    partial = takes_positions(model)
    packed = pack(samples, 60)
    assert len(packed) == 2
    with torch.no_grad():
        alone = {id(s): target_losses(model, Collator(0)([s]), partial=partial) for s in samples}
        together = target_losses(model, Collator(0)(packed), partial=partial)
        flat = target_losses(model, Collator(0, flat=True)(packed), partial=partial)
    expected = torch.cat([alone[id(part)] for item in packed for part in item.parts])
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-5)
    check_packing(model, samples, 0)


def test_attention_that_cannot_pack_is_refused():
    model = tiny_model("llama")
    inner = model.forward

    def forgetful(*args, position_ids=None, logits_to_keep=0, **kwargs):
        return inner(*args, logits_to_keep=logits_to_keep, **kwargs)

    model.forward = forgetful
    with pytest.raises(ModelError, match=r"does not keep packed rows apart.*data\.packing=false"):
        check_packing(model, [example(9), example(7, 30), example(8, 2)], 0)


def test_asking_for_some_positions_changes_no_loss():
    model = tiny_model("llama")
    batch = Collator(0)([example(6), example(9, 20), Packed((example(4),)).parts[0]])
    with torch.no_grad():
        some, every = (target_losses(model, batch, partial=partial) for partial in (True, False))
    torch.testing.assert_close(some, every)
