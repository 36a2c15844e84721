"""Models on devices of their own: what is refused, and that nothing of two devices meets anywhere but on the pair's.

Without a GPU, tuned is put on the device 'meta', which computes shapes alone and refuses to be mixed with the CPU; and a
base is laid out in pieces, all on the CPU, with the hooks that move what goes from one piece to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from tests.models.test_parity import batch
from tests.tiny import save_base, save_full, save_lora
from torch import Tensor

from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput, ModelError
from finetrace.engine.forced import Forced, compared, final_states
from finetrace.models import Pair, check_head, open_pair
from finetrace.models.next_token import next_logits
from finetrace.models.placement import Place, pick_dtype, place, refuse_offloaded
from finetrace.weights import effect
from finetrace.weights.read import deltas, others

GPU, NEAR, FAR = (torch.device(name) for name in ("cuda:1", "cpu", "meta"))
TEXTS = [Forced((5, 6, 7, 8), 3), Forced((9, 10), 1)]
PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {0: 1000, 1: 500}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free[index], 2000))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("placed")
    base = save_base(folder, "llama")
    return {"base": base, "full": save_full(folder, base), "lora": save_lora(folder, base)}


# Words to places.


@pytest.mark.parametrize(
    ("word", "device", "found"),
    [
        (None, "cpu", Place(NEAR)),
        ("cuda:1", "cpu", Place(GPU)),
        ("cpu", "cuda:1", Place(NEAR)),
        ("auto", "cpu", Place(torch.device("cuda:0"), spread=True)),
        (None, "auto", Place(torch.device("cuda"))),
    ],
)
def test_a_word_names_a_place(two_gpus: None, word: str | None, device: str, found: Place):
    assert place(word, device) == found


def test_auto_is_the_one_device_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place("auto", "cpu") == Place(NEAR)


@pytest.mark.parametrize(
    ("device_map", "tuned", "message"),
    [
        (("cuda:2", None), "full", r"There is no cuda:2 here: the GPUs are cuda:0, cuda:1\."),
        ((None, "abacus"), "full", r"'abacus' is not a device: auto, cpu, cuda, cuda:1 and mps are\."),
        ((None, "meta"), "full", r"On the device 'meta' nothing is computed"),
        (("cuda:0", "cuda:1"), "lora", r"The adapter .* is where its base is, on cuda:0; the device map puts it on cuda:1"),
        (("auto", "cuda:1"), "lora", r"on all GPUs; the device map puts it on cuda:1: give the base's place alone"),
        ((None, "cuda:1"), None, r"Tuned is the base itself, on cpu; the device map puts it on cuda:1"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_is_refused_before_anything_loads(
    two_gpus: None, folders: dict[str, Path], device_map: Any, tuned: str | None, message: str
):
    with pytest.raises(BadInput, match=message):
        open_pair(folders["base"], folders[tuned] if tuned else None, device="cpu", device_map=device_map)


def test_an_adapter_may_be_told_to_be_where_it_is(two_gpus: None, folders: dict[str, Path]):
    pair = open_pair(folders["base"], folders["lora"], device_map=("cuda", "cuda:0"), dtype="float32")
    assert pair.place("tuned") == pair.place("base") == Place(torch.device("cuda"))


def test_full_nulls_are_where_tuned_is_and_adapters_where_the_base_is(
    two_gpus: None, folders: dict[str, Path]
):
    nulls = {"full": folders["full"], "lora": folders["lora"]}
    pair = open_pair(folders["base"], folders["full"], nulls=nulls, device_map=("cpu", "cuda:1"))
    where = {side: str(pair.place(side)) for side in pair.sides}
    assert where == {"base": "cpu", "tuned": "cuda:1", "full": "cuda:1", "lora": "cpu"}
    assert pair.device_type == "cpu+cuda"
    assert pair.device == NEAR


@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        ([("cuda:0", 600), ("cuda:1", 300)], torch.float32),
        ([("cuda:0", 600), ("cuda:1", 301)], torch.float16),
        ([("cuda:0", 300), ("cuda:0", 301)], torch.float16),
        ([("cuda", 300), ("cuda:0", 301)], torch.float16),
        ([("cpu", 10**9), ("cuda:1", 300)], torch.float32),
        ([("cpu", 10**9), ("cpu", 10**9)], torch.float32),
        ([("auto", 450), ("auto", 450)], torch.float32),
        ([("auto", 450), ("auto", 451)], torch.float16),
        ([("auto", 601), ("cuda:1", 300)], torch.float16),
    ],
)
def test_float32_is_for_what_has_room_where_it_is(two_gpus: None, held: list[tuple[str, int]], dtype: Any):
    assert pick_dtype("auto", [(place(word, "cpu"), size) for word, size in held], "float16") == dtype


def test_a_model_that_does_not_fit_is_refused():
    model: Any = torch.nn.Linear(2, 2)
    refuse_offloaded(model, "org/model")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}
    with pytest.raises(
        ModelError, match=r"org/model does not fit .* 2 of its 3 parts .* first model\.layers\.1"
    ):
        refuse_offloaded(model, "org/model")
    model.hf_device_map = {"": "cpu"}
    refuse_offloaded(model, "org/model")


# Two devices.


@pytest.fixture
def apart(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A pair whose tuned side is far away; what comes from there is zeros."""
    pair = open_pair(folders["base"], folders["full"], attn_implementation="eager").load()
    assert pair._held is not None
    pair._held.parts["tuned"].model.to(FAR).tie_weights()
    pair.plan = replace(pair.plan, tuned=Place(FAR))
    real = Tensor.to

    def to(self: Tensor, *args: Any, **more: Any) -> Tensor:
        native: Any = torch._C
        device, dtype, *_ = native._nn._parse_to(*args, **more)
        if self.is_meta and device is not None and device != FAR:
            return torch.zeros(self.shape, dtype=dtype or self.dtype, device=device)
        return real(self, *args, **more)

    monkeypatch.setattr(Tensor, "to", to)
    return pair


def test_hidden_states_and_heads_come_to_the_pairs_device(apart: Pair):
    seen = apart.trunk("tuned", *batch(), layers=(0, 1))
    assert seen.final is not None
    states = (seen.final, *seen.layers.values(), apart.normed("tuned", seen.layers[0]))
    assert {one.device for one in states} == {NEAR}
    assert {apart.head(side).weight.device for side in apart.sides} == {NEAR}
    assert apart.lens("tuned", torch.ones(2, 32), direction=True).device == NEAR


def test_what_reads_both_sides_mixes_no_devices(apart: Pair):
    base, tuned = (final_states(apart, side, TEXTS) for side in ("base", "tuned"))
    assert [len(chunk.divergences.kl) for chunk in compared(apart, "tuned", base, tuned)] == [4]
    assert next_logits(apart, "tuned", PROMPTS).shape == (3, 64)
    check_head(apart)
    assert effect(apart, "tuned").status == "applied"
    assert all(delta.square() > 0 for delta in deltas(apart).values())
    assert {after.device for _, after in others(apart).values()} == {NEAR}


def test_memory_says_what_is_where_and_that_nothing_is_shared_across(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    together = open_pair(folders["base"], folders["full"], device_map=("cpu", None)).memory()
    assert together["shared"]["tuned"] > 0
    assert together["devices"] == {"cpu": together["total"]}
    from finetrace.models import loading

    real = loading.load_model
    monkeypatch.setattr(
        loading, "load_model", lambda source, **more: real(source, **more).to("cpu" if source.folder == folders["base"] else FAR)
    )  # fmt: skip
    held = open_pair(folders["base"], folders["full"]).memory()
    assert held["shared"] == {"tuned": 0}
    assert held["devices"] == {"cpu": held["base"], "meta": held["sides"]["tuned"]}


# One model in pieces.


def _pieces(model: Any) -> None:
    """Lays the model out piece by piece, on the CPU alone, with the hooks that a layout over several devices has."""
    parts = ("embed_tokens", "rotary_emb", "layers.0", "layers.1", "norm")
    where: dict[str, Any] = {f"model.{part}": "cpu" for part in parts} | {"lm_head": "cpu"}
    main: Any = "cpu"  # as a device it is another than the word, and everything would be put aside
    dispatch_model(model, device_map=where, main_device=main, force_hooks=True)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_model_in_pieces_says_what_the_whole_one_says(
    folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
):
    whole = open_pair(folders["base"], folders[kind])
    from finetrace.models import loading

    real: Callable[..., Any] = loading.load_model

    def laid_out(*args: Any, **more: Any) -> Any:
        model = real(*args, **more)
        _pieces(model)
        return model

    monkeypatch.setattr(loading, "load_model", laid_out)
    pieces = open_pair(folders["base"], folders[kind]).load()
    with pieces.open("base") as model:
        assert "_hf_hook" in vars(model.get_decoder().norm)
    for side in ("base", "tuned"):
        one, other = (pair.trunk(side, *batch(), layers=(0,)) for pair in (whole, pieces))
        assert one.final is not None
        assert other.final is not None
        assert torch.equal(one.final, other.final)
        assert torch.equal(one.layers[0], other.layers[0])
        read = [pair.lens(side, one.layers[0][0], direction=True) for pair in (whole, pieces)]
        assert torch.equal(*read)
        assert torch.equal(next_logits(whole, side, PROMPTS), next_logits(pieces, side, PROMPTS))
    check_head(pieces)
    said = [pair.generate(["w1 w2", "w3"], decoding=Decoding(max_new_tokens=4)) for pair in (whole, pieces)]
    assert said[0] == said[1]


def test_spread_reaches_transformers(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    asked = []
    import transformers

    real = transformers.AutoModelForCausalLM.from_pretrained

    def seen(*args: Any, **more: Any) -> Any:
        asked.append(more.pop("device_map", None))
        return real(*args, **more)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", seen)
    pair = open_pair(folders["base"], folders["full"])
    pair.plan = replace(pair.plan, spread=True)
    pair.load()
    assert asked == ["auto", None]


# On real ones.


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", [("cpu", "cuda:0"), ("cuda:0", "cpu"), ("cuda:0", "cuda:1"), ("auto", "auto")])  # fmt: skip
def test_where_sides_are_changes_rounding_alone(folders: dict[str, Path], device_map: tuple[str, str]):
    count = torch.cuda.device_count()
    if count < 1 or (count < 2 and "cpu" not in device_map):
        pytest.skip(
            f"{device_map} needs {1 if 'cpu' in device_map else 2} CUDA devices, and here are {count}"
        )
    plain, placed = (
        open_pair(folders["base"], folders["full"], dtype="float32", device="cpu", device_map=one)
        for one in ((None, None), device_map)
    )
    for side in ("base", "tuned"):
        one, other = (next_logits(pair, side, PROMPTS) for pair in (plain, placed))
        assert torch.allclose(one, other, atol=1e-4)
    base, tuned = (final_states(placed, side, TEXTS) for side in ("base", "tuned"))
    assert base.device == tuned.device == placed.device
    assert sum(len(chunk.divergences.kl) for chunk in compared(placed, "tuned", base, tuned)) == 4
    said = [pair.generate(["w1 w2", "w3"], decoding=Decoding(max_new_tokens=4)) for pair in (plain, placed)]
    assert said[0] == said[1]
