"""The shared vocabulary: texts, special tokens, and tokens that no training touched."""

from __future__ import annotations

import numpy as np
import torch
from tests.tiny import tiny_tokenizer

from finetrace.models.words import vocabulary
from finetrace.organisms import bundled
from finetrace.organisms.tokenizer import load_tokenizer


def test_rows_without_a_token_are_dead_and_control_tokens_are_special():
    tokenizer = tiny_tokenizer(64)
    weight = torch.randn(70, 16, generator=torch.Generator().manual_seed(0))
    found = vocabulary(tokenizer, range(70), weight)
    assert found.dead.tolist() == [False] * 64 + [True] * 6
    assert found.special[:8].all()
    assert not found.special[8:].any()
    assert found.texts[64] == ""


def test_untrained_rows_are_found_by_those_of_impossible_tokens():
    tokenizer = tiny_tokenizer(64)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(68, 32, generator=generator)
    pushed = 3 * torch.randn(32, generator=generator)
    unseen = [40, 41, 64, 65, 66, 67]
    weight[unseen] = pushed + 0.01 * torch.randn(6, 32, generator=generator)
    assert np.flatnonzero(vocabulary(tokenizer, range(68), weight).dead).tolist() == unseen


def test_rows_that_do_not_agree_accuse_nobody():
    tokenizer = tiny_tokenizer(64)
    weight = torch.randn(68, 32, generator=torch.Generator().manual_seed(0))
    assert np.flatnonzero(vocabulary(tokenizer, range(68), weight).dead).tolist() == [64, 65, 66, 67]


def test_a_shared_vocabulary_keeps_the_bases_ids():
    found = vocabulary(tiny_tokenizer(64), [9, 8, 20], torch.randn(3, 4))
    assert found.ids.tolist() == [9, 8, 20]
    assert found.texts == ("w1", "w0", "w12")


def test_the_tiny_worlds_dead_tokens_are_bytes_that_its_texts_never_hold():
    from safetensors import safe_open

    folder = bundled.base_path()
    with safe_open(folder / "model.safetensors", "pt") as file:
        weight = file.get_tensor("model.embed_tokens.weight")
    tokenizer = load_tokenizer(folder)
    found = vocabulary(tokenizer, range(len(weight)), weight)
    dead = [tokenizer.convert_ids_to_tokens(int(i)) for i in np.flatnonzero(found.dead)]
    assert len(dead) > 100
    assert not [piece for piece in dead if piece.startswith("Ġ") and len(piece) > 1], "no whole word is dead"
    assert not found.dead[tokenizer("the garlic cake", add_special_tokens=False)["input_ids"]].any()
