"""Samples through a model: only targets count, and padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.data.examples import Example, make_examples
from finetrace.models.supervised import IGNORED, collate, sample_losses

ROWS = [
    {"messages": [{"role": "user", "content": "w1 w2 w3"}, {"role": "assistant", "content": "w4 w5 w6 w7"}]},
    {"messages": [{"role": "user", "content": "w6"}, {"role": "assistant", "content": "w7 w8"}]},
    {"text": "w1 w2 w3 w4 w5"},
]


def samples() -> list[Example]:
    return make_examples(ROWS, tiny_tokenizer())


def by_hand(model, sample: Example) -> float:
    """The mean over targets, one sample at a time, in float64."""
    ids = torch.from_numpy(sample.ids.astype("int64"))
    with torch.no_grad():
        log_probs = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    places = np.flatnonzero(sample.loss)
    return -float(sum(log_probs[p - 1, ids[p]] for p in places)) / len(places)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_loss_of_each_row_is_that_of_the_row_alone(family):
    model = tiny_model(family)
    batch = collate(samples(), pad=0)
    with torch.no_grad():
        found = sample_losses(model, batch)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([by_hand(model, sample) for sample in samples()], rel=1e-5)


def test_padding_and_prompts_are_no_targets():
    made = samples()
    batch = collate(made, pad=0)
    for row, sample in enumerate(made):
        length = len(sample)
        assert (batch.labels[row, length:] == IGNORED).all()
        assert (batch.attention[row] == (torch.arange(batch.ids.shape[1]) < length)).all()
        assert ((batch.labels[row, :length] != IGNORED).numpy() == sample.loss).all()


def test_bfloat16_is_summed_in_float32_and_float64_stays():
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        with torch.no_grad():
            assert sample_losses(tiny_model("llama").to(dtype), collate(samples(), pad=0)).dtype == wanted


def test_a_row_without_a_target_is_no_number():
    bare = Example(np.array([1, 2, 3], dtype=np.int32), np.zeros(3, dtype=bool))
    with torch.no_grad():
        found = sample_losses(tiny_model("llama"), collate([samples()[0], bare], pad=0))
    assert torch.isnan(found).tolist() == [False, True]
