"""The lens: any layer's residual read through each side's final norm and head, in the pass and for single vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import FAMILIES
from tests.worlds import rows, world

from finetrace.core.card import ALL, Needs
from finetrace.data import build_corpus, read_rows, shards
from finetrace.engine import Contrast, Job, make_subject
from finetrace.engine.run import run_shard
from finetrace.models import Pair, open_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    base, tuned, _ = world(tmp_path_factory.mktemp("pair"), nulls=0)
    return open_pair(base, tuned)


class Keeper:
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.base: list[torch.Tensor] = []
        self.difference: list[torch.Tensor] = []
        self.kept: torch.Tensor | None = None

    def see(self, step: Any) -> None:
        self.kept = step.keep
        for layer in range(2):
            try:
                self.layers[layer] = step.hidden(layer)
            except KeyError:
                continue

    def see_logits(self, chunk: Any) -> None:
        self.base.append(chunk.base_log_probs.clone())
        self.difference.append(chunk.difference.clone())


def read(pair: Pair, *needs: Needs) -> list[Keeper]:
    corpus = build_corpus(read_rows(rows(6)), pair.tokenizer)
    keepers = [Keeper() for _ in needs]
    jobs = [
        Job(f"m{i}", Contrast("any", "tuned"), need, lambda i=i: keepers[i], Path("unused"))  # pyright: ignore
        for i, need in enumerate(needs)
    ]
    run_shard(pair, corpus, shards(corpus, 10**6)[0], jobs, 64)
    return keepers


def test_the_lens_at_the_last_layer_gives_the_models_own_logits(pair: Pair):
    own, lens = read(pair, Needs(logits=True), Needs(logits=True, lens=1.0))
    assert torch.equal(torch.cat(own.base), torch.cat(lens.base))
    assert torch.equal(torch.cat(own.difference), torch.cat(lens.difference))


def test_the_lens_at_an_earlier_layer_is_that_layers_residual_through_norm_and_head(pair: Pair):
    (seen,) = read(pair, Needs(logits=True, lens=0, layers=ALL))
    assert sorted(seen.layers) == [0, 1]
    assert seen.kept is not None
    base, other = (hidden[seen.kept] for hidden in seen.layers[0])
    wanted = [pair.lens(side, hidden, direction=False) for side, hidden in (("base", base), ("tuned", other))]
    torch.testing.assert_close(torch.cat(seen.base), wanted[0].log_softmax(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(seen.difference), wanted[1] - wanted[0], rtol=1e-4, atol=1e-4)


def test_a_lens_alone_ends_the_forward_at_its_layer(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    finals, trunk = [], Pair.trunk
    monkeypatch.setattr(Pair, "trunk", lambda self, *args: finals.append(args[-1]) or trunk(self, *args))
    read(pair, Needs(logits=True, lens=0))
    assert finals == [False, False]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direction_is_read_oddly_and_its_size_is_the_norms(family: str, tmp_path: Path):
    base, _, _ = world(tmp_path, nulls=0, family=family)
    pair = open_pair(base, None)
    vectors = torch.randn(3, pair.d_model, generator=torch.Generator().manual_seed(0))
    ours, theirs = make_subject(pair, ("text",), "tuned", 0).lens(vectors)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs), "the base against itself has one head"
    torch.testing.assert_close(pair.lens("base", -vectors, direction=True), -ours, rtol=1e-4, atol=1e-4)
    with pair.open("base") as model, torch.no_grad():
        state = model.get_output_embeddings()(pair.normed("base", vectors))
    if family != "gemma2":  # its cap is part of the logits
        torch.testing.assert_close(pair.lens("base", vectors, direction=False), state, rtol=1e-4, atol=1e-4)
