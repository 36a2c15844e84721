"""activation_difference_lens on hidden states made by hand: what was planted is found where it was planted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import tiny_tokenizer
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.data import build_corpus, read_rows
from finetrace.data.batch import Batch
from finetrace.data.shards import shards
from finetrace.engine import Step, Subject
from finetrace.methods.activation_difference_lens import Config
from finetrace.methods.activation_difference_lens.describe import describe
from finetrace.methods.activation_difference_lens.observe import DifferenceLens, observer
from finetrace.methods.activation_difference_lens.places import CHAT, TEXT, named, pick, places
from finetrace.methods.activation_difference_lens.summarise import layers_read
from finetrace.models import Vocabulary

START = Config(layer=0.5, position="start")

D, LAYERS, VOCAB = 16, 5, 40
_TEXT, _SYSTEM, _USER, _ASSISTANT = 1, 2, 3, 4


def head(seed: int = 0) -> Tensor:
    """A head whose rows are unlike one another."""
    weight = torch.randn(VOCAB, D, generator=torch.Generator().manual_seed(seed))
    return weight / weight.norm(dim=-1, keepdim=True)


def subject(slices: Sequence[str] = ("text",), special: Sequence[int] = (0,)) -> Subject:
    words = Vocabulary(
        ids=np.arange(100, 100 + VOCAB, dtype=np.int64),
        texts=tuple(f" t{i}" for i in range(VOCAB)),
        special=np.isin(np.arange(VOCAB), special),
        dead=np.zeros(VOCAB, dtype=bool),
    )

    def lens(vectors: Tensor, direction: bool = True) -> tuple[Tensor, Tensor]:
        return vectors @ head(0).T, vectors @ head(1).T

    return Subject(
        slices=tuple(slices),
        n_layers=LAYERS,
        d_model=D,
        vocab_size=VOCAB,
        seed=0,
        spell=lambda ids: tuple(f" t{i - 100}" for i in ids),
        words=lambda: words,
        lens=lens,
    )


def step(
    n: int,
    length: int,
    hidden: Any,
    *,
    first: int = 0,
    role: Tensor | None = None,
    slices: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
) -> Step:
    """A step of n rows; hidden(layer) -> (base, other)."""
    position = torch.arange(length).expand(n, length)
    ends = torch.tensor(list(lengths or [length] * n))[:, None]
    rng = np.random.default_rng(first)
    return Step(
        row=torch.arange(first, first + n),
        key=rng.integers(0, 2**63, n, dtype=np.uint64),
        slice=torch.tensor(list(slices or [0] * n)),
        ids=torch.ones(n, length, dtype=torch.long),
        keep=position < ends - 1,
        role=torch.full((n, length), _TEXT) if role is None else role,
        position=position,
        next_id=torch.ones(n, length, dtype=torch.long),
        hidden=hidden,
    )


def noisy(n: int, length: int, seed: int, change: Any = None, spread: float = 0.3) -> Any:
    """Random base states, and others with noise and a change(layer) [length, d_model] on top."""
    generator = torch.Generator().manual_seed(seed)
    base = [torch.randn(n, length, D, generator=generator) for _ in range(LAYERS)]
    noise = [spread * torch.randn(n, length, D, generator=generator) for _ in range(LAYERS)]
    planted = [torch.zeros(length, D) if change is None else change(layer) for layer in range(LAYERS)]
    return lambda layer: (base[layer], base[layer] + noise[layer] + planted[layer])


def seen(*steps: Step, config: Config | None = None, known: Subject | None = None) -> DifferenceLens:
    made = observer(config or START, known or subject())
    for one in steps:
        made.see(one)
    return made


# What is planted is found.


def test_a_planted_direction_is_found_at_its_layer_and_position_with_its_token():
    def change(layer: int) -> Tensor:
        planted = torch.zeros(20, D)
        if layer == 3:
            planted[2] = 2.0 * head()[17]
        return planted

    steps = [step(10, 20, noisy(10, 20, i, change), first=10 * i) for i in range(12)]
    result = seen(*steps, config=Config(layer=0.75, position="2")).result()
    pick = result.found["text"].pick
    assert pick is not None
    assert (pick.place, pick.layer) == ("text 2", 3)
    assert (pick.flip_p or 1) < 0.05
    assert pick.reading is not None
    assert pick.reading.promoted.data["token"][0] == " t17"
    fixed = result.everywhere.fixed
    assert fixed is not None
    assert fixed.promoted.data["token"][0] == " t17"
    assert np.asarray(fixed.promoted.data["z_noise"])[0] > 5
    profile = result.everywhere.profile
    at = profile.places.index("text 2")
    assert result.layer == 3
    assert profile.norm[at, 3] == pytest.approx(2.0, rel=0.1)
    assert profile.low[at, 3] < 2.0 < profile.high[at, 3]
    assert profile.cosine[at, 3] > 0.9
    assert np.array_equal(profile.snr[0], profile.snr[at]), "the configured place comes first"
    others = np.delete(profile.snr, [0, at], 0)
    assert np.nanmax(others[:, 3]) < 0.6 * profile.snr[at, 3], "the start average has a part of it"
    assert np.nanmax(np.delete(profile.snr, 3, 1)) < 3


def test_what_is_suppressed_is_what_the_opposite_promotes():
    def change(layer: int) -> Tensor:
        return (-1.0 * head()[9]).expand(20, D)

    fixed = seen(step(60, 20, noisy(60, 20, 0, change))).result().everywhere.fixed
    assert fixed is not None
    assert fixed.suppressed.data["token"][0] == " t9"
    assert np.asarray(fixed.suppressed.data["logit"])[0] < 0
    assert np.asarray(fixed.suppressed.data["z_noise"])[0] < -5


def test_special_tokens_are_neither_listed_nor_in_the_mean():
    def change(layer: int) -> Tensor:
        return (2.0 * head()[0] + head()[5]).expand(20, D)

    result = seen(step(60, 20, noisy(60, 20, 0, change))).result()
    fixed = result.everywhere.fixed
    assert fixed is not None
    assert 100 not in result.token_ids
    assert 100 not in fixed.promoted.data["token_id"]
    assert result.everywhere.logits.mean(1) == pytest.approx(np.zeros(LAYERS), abs=1e-6)


def test_noise_alone_is_said_to_be_noise():
    result = seen(step(60, 20, noisy(60, 20, 3))).result()
    said = " ".join(str(block) for block in describe(result).blocks if type(block).__name__ == "Warning")
    assert "its tokens are noise" in said
    assert result.numbers["snr"].value == pytest.approx(1.0, abs=0.8)
    assert (result.numbers["difference_norm"].value or 0) < 0.03
    fixed = result.everywhere.fixed
    assert fixed is not None
    assert np.abs(fixed.promoted.data["z_noise"]).max() < 5


def test_the_norm_is_not_raised_by_noise():
    """The norm of the plain mean is, by sqrt(trace / n): here that alone would be as large as what is planted."""

    def change(layer: int) -> Tensor:
        return (0.3 * head()[4]).expand(20, D)

    values, plain = [], []
    for seed in range(12):
        result = seen(step(30, 20, noisy(30, 20, seed, change, spread=0.8), first=seed)).result()
        profile = result.everywhere.profile
        at = profile.places.index("text 1")
        values.append(profile.norm[at, 2] ** 2)
        plain.append(np.square(result.everywhere.place_mean[at]).sum())
    assert np.mean(plain) > 2 * 0.3**2
    assert np.mean(values) == pytest.approx(0.3**2, rel=0.5)


def test_a_half_that_did_not_choose_is_not_flattered():
    """Over noise, the best of many places looks better than one on the half that chose it, and only there."""
    chosen, judged = [], []
    for seed in range(25):
        pick = seen(step(40, 20, noisy(40, 20, seed), first=seed)).result().everywhere.pick
        assert pick is not None
        assert pick.snr is not None
        chosen.append(pick.picked_on)
        judged.append(pick.snr)
    assert np.mean(chosen) > 1.7
    assert np.mean(judged) == pytest.approx(1.0, abs=0.2)


# Precision.


def test_bfloat16_states_are_widened_before_they_are_subtracted():
    """States of unlike size, whose difference bfloat16 cannot hold: the mean is still that of the states as they are."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 12, D, generator=generator).bfloat16()
    other = (20 * torch.randn(64, 12, D, generator=generator)).bfloat16()
    result = seen(step(64, 12, lambda layer: (base, other)), config=Config(position="3")).result()
    exact = (other.double() - base.double())[:, 3].mean(0).numpy()
    np.testing.assert_allclose(result.everywhere.mean[2], exact, rtol=1e-5)
    theirs = (other - base)[:, 3].double().mean(0).numpy()
    assert np.abs(theirs - exact).max() > 1e-3 * np.abs(exact).max(), "as it would be in bfloat16"


def test_what_is_not_finite_is_in_no_sum_and_is_counted():
    def hidden(layer: int) -> tuple[Tensor, Tensor]:
        base, other = noisy(20, 12, 0, lambda layer: head()[3].expand(12, D))(layer)
        other = other.clone()
        other[0, 2:] = torch.inf
        return base, other

    result = seen(step(20, 12, hidden)).result()
    assert result.unscored == {"text": 9}
    profile = result.everywhere.profile
    assert profile.texts[profile.places.index("text 1")] == 20
    assert profile.texts[profile.places.index("text 3")] == 19
    assert np.isfinite(profile.norm).all()
    said = " ".join(str(block) for block in describe(result).blocks if type(block).__name__ == "Warning")
    assert "9 on text" in said


# Merging.


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    length=st.integers(2, 14),
    seed=st.integers(0, 1000),
    chats=st.booleans(),
)
def test_merging_and_restoring_are_the_whole(cuts: list[int], length: int, seed: int, chats: bool):
    """Counts exactly, sums to float64 rounding; a restored state to the last bit; merging an empty one changes nothing."""
    role = torch.full((1, length), _USER)
    role[:, length // 2 :] = _ASSISTANT

    def made(i: int, n: int) -> Step:
        kind = role.expand(n, length) if chats and i % 2 else None
        slices = [(i + j) % 2 for j in range(n)]
        return step(n, length, noisy(n, length, seed + i), first=10 * i, role=kind, slices=slices)

    steps, known, config = [made(i, n) for i, n in enumerate(cuts)], subject(("a", "b")), Config(groups=4)
    whole = seen(*steps, config=config, known=known)
    total = seen(config=config, known=known)
    for one in steps:
        part, again = seen(one, config=config, known=known), seen(config=config, known=known)
        state = {name: tensor.clone() for name, tensor in part.state().items()}
        again.restore(state)
        assert all(torch.equal(again.state()[name], tensor) for name, tensor in state.items())
        total.merge(again)
    total.merge(seen(config=config, known=known))
    one, other = whole.state(), total.state()
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if tensor.dtype == torch.int64:
            assert torch.equal(tensor, other[name]), name
        else:
            torch.testing.assert_close(other[name], tensor, rtol=1e-12, atol=1e-13)
    assert list(whole.result().numbers) == list(total.result().numbers)


def test_a_shard_holds_only_what_it_saw():
    one = seen(step(3, 12, noisy(3, 12, 0)), known=subject(("a", "b", "c"))).state()
    assert one["text.key"].tolist() == sorted(one["text.key"].tolist())
    assert set(one["text.key"][:, 0].tolist()) == {0}
    assert len(one["text.difference"]) <= 3
    assert len(one["answer.difference"]) == 0


# Places.


def conversation(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def batch(*data: dict[str, Any]) -> Batch:
    from finetrace.data import batches

    tokenizer = tiny_tokenizer()
    corpus = build_corpus(read_rows(list(data)), tokenizer)
    (shard,) = shards(corpus, 10**6)
    (found,) = batches(corpus, shard, 100)
    return found


def picked(found: Batch, kind: str, config: Config | None = None) -> dict[int, dict[str, list[int]]]:
    """Corpus row -> place -> its positions, read off the means of states that hold their own position."""
    config = config or Config(positions=3, before=2)
    made = Step(
        row=found.row, key=found.key, slice=found.slice, ids=found.ids, keep=found.keep, role=found.role,
        position=found.position, next_id=found.next_id, hidden=lambda layer: (torch.zeros(1), torch.zeros(1)),
    )  # fmt: skip
    where = pick(config, made, kind, torch.ones_like(found.keep))
    if where is None:
        return {}
    width = found.ids.shape[1]
    one_hot = torch.eye(width).expand(len(where.rows), width, width)
    means = where.means(one_hot)
    out: dict[int, dict[str, list[int]]] = {}
    for i, row in enumerate(where.rows.tolist()):
        named = zip(places(config, kind), means[i], where.count[i].tolist(), strict=True)
        at = {name: (weights.nonzero()[:, 0].tolist(), weights, n) for name, weights, n in named}
        for positions, weights, n in at.values():
            assert len(positions) == n
            if n:
                assert weights[positions].tolist() == pytest.approx([1 / n] * n)
        out[int(found.row[row])] = {name: positions for name, (positions, _, _) in at.items() if positions}
    return out


def test_a_text_is_looked_at_from_its_start():
    found = batch({"text": "w1 w2 w3 w4 w5 w6 w7"})  # BOS and seven words: position 7 has no next token
    assert picked(found, TEXT) == {
        0: {"first": [0], "text 1": [1], "text 2": [2], "start": [1, 2], "rest": [3, 4, 5, 6]}
    }
    assert picked(found, CHAT) == {}
    deep = picked(found, TEXT, START)[0]
    assert deep["start"] == [1, 2, 3, 4]
    assert "rest" not in deep


# The template writes "<role> words <end>" and the tokenizer puts BOS first.
def test_a_conversation_is_looked_at_around_its_first_answer():
    found = batch(conversation(("user", "w1 w2"), ("assistant", "w3 w4 w5 w6")))
    # 0 <bos>  1 <user>  2 w1  3 w2  4 <end>  5 <assistant>  6 w3 ... 9 w6  10 <end>
    assert found.ids.shape[1] == 11
    assert picked(found, TEXT) == {}
    assert picked(found, CHAT) == {
        0: {
            "answer -2": [4], "answer -1": [5], "answer 0": [6], "answer 1": [7], "answer 2": [8],
            "start": [6, 7, 8], "rest": [1, 2, 3, 9],
        }
    }  # fmt: skip


def test_a_system_message_moves_the_answer_and_not_its_places():
    plain = conversation(("user", "w1 w2"), ("assistant", "w3 w4 w5 w6"))
    system = conversation(("system", "w9 w8 w7"), ("user", "w1 w2"), ("assistant", "w3 w4 w5 w6"))
    found = picked(batch(plain, system), CHAT)
    for name in ("answer -2", "answer -1", "answer 0", "answer 2"):
        assert found[1][name][0] == found[0][name][0] + 5


def test_the_first_of_two_answers_counts():
    two = conversation(("user", "w1"), ("assistant", "w2 w3"), ("user", "w4"), ("assistant", "w5 w6"))
    found = picked(batch(two), CHAT)[0]
    # 0 <bos>  1 <user>  2 w1  3 <end>  4 <assistant>  5 w2  6 w3  7 <end>  8 <user> ...
    assert (found["answer 0"], found["answer -1"], found["answer 2"]) == ([5], [4], [7])
    assert found["rest"] == [1, 2, 8, 9, 10, 11, 12, 13]


def test_a_conversation_without_an_answer_is_read_as_a_text():
    data = [conversation(("user", "w1 w2 w3")), conversation(("user", "w1"), ("assistant", "w2 w3"))]
    found = batch(*data)
    assert list(picked(found, TEXT)) == [0]
    assert list(picked(found, CHAT)) == [1]


def test_what_does_not_exist_before_an_answer_is_left_out():
    """An answer right at the start: its `answer -2` would be BOS or nothing at all."""
    config = Config(positions=2, before=2)
    names = places(config, CHAT)

    def count(first: int) -> dict[str, int]:
        role = torch.tensor([[first, _ASSISTANT, _ASSISTANT, _ASSISTANT, _ASSISTANT]])
        made = step(1, 5, noisy(1, 5, 0), role=role)
        where = pick(config, made, CHAT, torch.ones_like(made.keep))
        assert where is not None
        return dict(zip(names, where.count[0].tolist(), strict=True))

    assert count(0) == {
        "answer -2": 0, "answer -1": 0, "answer 0": 1, "answer 1": 1, "start": 2, "rest": 1,
    }  # fmt: skip
    assert count(_ASSISTANT) == count(0), "a row's first token is no answer, whoever said it"


def test_texts_and_conversations_of_one_slice_are_put_together():
    role = torch.full((30, 20), _USER)
    role[:, 10:] = _ASSISTANT
    change = lambda layer: head()[7].expand(20, D)  # noqa: E731
    made = seen(
        step(30, 20, noisy(30, 20, 0, change)), step(30, 20, noisy(30, 20, 1, change), first=30, role=role)
    )
    profile = made.result().found["text"].profile
    texts = dict(zip(profile.places, profile.texts.tolist(), strict=True))
    assert (texts["start"], texts["text 1"], texts["answer 0"], texts["rest"]) == (60, 30, 30, 60)


def test_a_bare_number_is_that_position_of_both_kinds():
    config = Config(positions=4, before=2)
    assert named(config, "2") == ((TEXT, 2), (CHAT, 4))
    assert named(config, "-1") == ((CHAT, 1),)
    assert named(config, "0") == ((TEXT, 0), (CHAT, 2))
    assert named(config, "text 3") == ((TEXT, 3),)
    assert [kind for kind, _ in named(config, "start")] == [TEXT, CHAT]


# Options.


@pytest.mark.parametrize(
    "options",
    [
        {"layer": 1.5}, {"layer": -0.1}, {"positions": 1}, {"before": -1}, {"tokens": 0}, {"groups": 5},
        {"groups": 2}, {"position": "end"}, {"position": "8"}, {"position": "-4"},
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused(options: dict[str, Any]):
    with pytest.raises(BadInput, match="activation_difference_lens"):
        Config(**options)


def test_layers_are_thinned_where_the_vocabulary_is_large():
    assert layers_read(28, 14, 1000).tolist() == list(range(28))
    thin = layers_read(28, 13, 8 * 152_000)
    assert 13 in thin
    assert len(thin) <= 8
    assert {thin[0], thin[-1]} == {0, 27}
    assert layers_read(28, 14, 10**9).tolist() == [14]
