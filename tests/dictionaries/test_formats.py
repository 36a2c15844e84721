"""Dictionaries of other tools: their codes by their own sums, written and read again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import CODE_NORMS, Dictionary
from finetrace.dictionaries.formats import FORMATS, export, load_dictionary, open_dictionary

D, LATENTS = 4, 6
Weights = dict[str, Tensor]


def made(seed: int, models: int = 1, *, d: int = D, latents: int = LATENTS, **changes: Any) -> Dictionary:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    parts: dict[str, Any] = {
        "encoder": normal(models, d, latents),
        "encoder_bias": normal(latents),
        "decoder": normal(models, latents, d),
        "decoder_bias": normal(models, d),
        "mean": 20 * normal(models, d),
        "scale": torch.rand(models, generator=g) + 0.2,
        "owner": torch.zeros(latents, dtype=torch.int8),
        "threshold": 0.4,
        "kind": "batch_topk",
        "code_norm": "crosscoder" if models == 2 else "none",
    }
    return Dictionary(**parts | changes)


def rows_for(some: Dictionary, seed: int = 5) -> Tensor:
    """Hidden states about the mean, as large as one unit of what the dictionary reads."""
    noise = torch.randn(17, some.models, some.d, generator=torch.Generator().manual_seed(seed))
    return some.mean + noise / some.scale[:, None]


def agree(codes: Tensor, others: Tensor, unsure: Tensor | bool = False) -> None:
    """The same codes to float32 rounding; `unsure` ones are too near a threshold to tell."""
    far = (codes - others.float()).abs() > 2e-4 * (1 + codes.abs())
    assert not bool((far & ~torch.as_tensor(unsure)).any())


def saelens_says(cfg: dict[str, Any], w: Weights, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of x [row, d] by SAELens's own steps (6.54.12), in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    z = x.double() * scale - (w["b_dec"] if cfg.get("apply_b_dec_to_input", True) else 0)
    pre = z @ w["W_enc"] + w["b_enc"]
    norms = w["W_dec"].norm(dim=1) if cfg.get("rescale_acts_by_decoder_norm") else torch.ones(1)
    pre = pre * norms
    match cfg["architecture"]:
        case "jumprelu":
            codes = pre.relu() * (pre > w["threshold"].relu())
        case "topk":
            best = pre.topk(cfg["k"], dim=1)
            codes = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
        case "batchtopk":
            codes = pre.relu() * (pre > w["topk_threshold"])
        case _:
            codes = pre.relu()
    factor = w.get("scaling_factor", torch.ones(1))
    return codes, ((codes * factor / norms) @ w["W_dec"] + w["b_dec"]) / scale


def dictionary_learning_says(kind: str, w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction of x [row, d] by the class's own steps (0.1.0), in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    x = x.double()
    if kind == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        codes = (pre * (pre > w["threshold"])).relu()
        return codes, codes @ w["W_dec"] + w["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        pre = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
        return pre * (pre > w["threshold"]), (pre * (pre > w["threshold"])) @ w["W_dec"] + w["b_dec"]
    taken = w.get("b_dec", w.get("bias", torch.zeros(1)))
    added = w.get("decoder.bias", taken)
    codes = ((x - taken) @ w["encoder.weight"].T + w["encoder.bias"]).relu()
    if kind == "BatchTopKSAE":
        codes = codes * (codes > w["threshold"])
    if kind == "AutoEncoderTopK":
        best = codes.topk(int(w["k"]), dim=1)
        codes = torch.zeros_like(codes).scatter(1, best.indices, best.values)
    return codes, codes @ w["decoder.weight"].T + added


def fork_says(config: dict[str, Any], w: Weights, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes ([row, model, latent]), reconstruction and weighted codes of x [row, model, d] by the fork's crosscoders."""
    w = {name: tensor.double() for name, tensor in w.items()}
    mean, scale = w["activation_mean"], w["activation_global_scale"][:, None]
    z = (x.double() - mean) * scale
    f = (torch.einsum("bld,ldf->bf", z, w["encoder.weight"]) + w["encoder.bias"]).relu()
    norms = w["decoder.weight"].norm(dim=2)
    whole = w["decoder.weight"].norm(dim=(0, 2))
    alphas = config.get("code_normalization_alpha_sae", 1.0), config.get("code_normalization_alpha_cc", 0.1)
    weights = {
        "CROSSCODER": norms.sum(0, keepdim=True),
        "SAE": whole[None],
        "MIXED": (alphas[0] * whole + alphas[1] * norms.sum(0))[None],
        "NONE": torch.ones_like(whole)[None],
        "DECOUPLED": norms,
    }[config["code_normalization"]]
    weighted = f[:, None] * weights
    kept = torch.ones_like(weighted, dtype=torch.bool)
    if "threshold" in w:
        kept = weighted > w["threshold"].reshape(-1, 1)
    codes = (f[:, None] * kept).expand(-1, 2, -1)
    out = torch.einsum("blf,lfd->bld", codes, w["decoder.weight"]) + w["decoder.bias"]
    return codes, out / scale + mean, weighted


CHANGES = st.sampled_from(
    [
        {},
        {"kind": "relu", "threshold": 0.0},
        {"code_norm": "sae"},
        {"code_norm": "sae", "kind": "relu", "threshold": 0.0},
        {"threshold": 0.0, "thresholds": torch.linspace(0.0, 1.5, LATENTS)},
        {"threshold": 0.0, "row_limit": 2},
        {"threshold": 0.0, "row_limit": LATENTS + 3},
    ]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


def fresh(place: Path) -> Path:
    return place / str(sum(1 for _ in place.iterdir()))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), changes=CHANGES, format=st.sampled_from(FORMATS))
def test_one_models_dictionary_written_and_read_again_gives_the_same(
    place: Path, seed: int, changes: dict[str, Any], format: str
):
    some, folder = made(seed, **changes), fresh(place)
    folder.mkdir()
    x = rows_for(some)
    files = export(some, folder, format, k=3)
    again = open_dictionary(folder, d_model=D)
    assert again.origin.format == format
    codes = some.codes(x)
    agree(codes, again.dictionary.codes(x))
    torch.testing.assert_close(again.dictionary.reconstruct(x), some.reconstruct(x), atol=2e-3, rtol=1e-4)
    if format == "finetrace":
        return
    config = json.loads((files[0]).read_text())
    weights = load_file(files[1])
    if format == "saelens":
        if config.get("k", 0) > LATENTS:
            config["k"] = LATENTS
        theirs = saelens_says(config, weights, x[:, 0])
    else:
        if "k" in weights:
            weights["k"] = weights["k"].clamp(max=LATENTS)
        theirs = dictionary_learning_says(config["trainer"]["dict_class"], weights, x[:, 0])
    agree(codes, theirs[0])
    torch.testing.assert_close(theirs[1].float(), some.reconstruct(x)[:, 0], atol=2e-3, rtol=1e-4)
    assert codes.count_nonzero() > 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    norm=st.sampled_from(CODE_NORMS),
    relu=st.booleans(),
    format=st.sampled_from(["finetrace", "dictionary_learning"]),
)
def test_a_crosscoder_written_and_read_again_gives_the_same(
    place: Path, seed: int, norm: Any, relu: bool, format: str
):
    kind: dict[str, Any] = {"kind": "relu", "threshold": 0.0} if relu else {"threshold": 1.5}
    some, folder = made(seed, 2, code_norm=norm, **kind), fresh(place)
    folder.mkdir()
    files = export(some, folder, format, k=3)
    again, x = load_dictionary(folder), rows_for(some)
    codes = some.codes(x)
    agree(codes, again.codes(x))
    torch.testing.assert_close(again.reconstruct(x), some.reconstruct(x), atol=2e-3, rtol=1e-4)
    assert (again.kind, again.code_norm) == (some.kind, norm)
    if format == "dictionary_learning":
        config = json.loads(files[0].read_text())
        theirs, out, weighted = fork_says(config, load_file(files[1]), x)
        unsure = ((weighted - some.threshold).abs() < 1e-3).any(1)
        agree(codes, theirs.amax(1), unsure)
        torch.testing.assert_close(out.float(), some.reconstruct(x), atol=2e-3, rtol=1e-4)


def test_what_has_no_place_in_a_format_is_refused(tmp_path: Path):
    for some, format, match in [
        (made(1, 2), "saelens", "two models at once"),
        (made(1, row_limit=2), "saelens", "no thresholds"),
        (made(1, row_limit=2), "dictionary_learning", "no thresholds"),
        (made(1), "dictionary_learning", "trained with"),
        (made(1, 2), "dictionary_learning", "trained with"),
        (made(1, 2, threshold=0.0, thresholds=torch.ones(LATENTS)), "dictionary_learning", "one threshold"),
        (made(1), "saelense", "Did you mean 'saelens'"),
    ]:
        with pytest.raises(BadInput, match=match):
            export(some, tmp_path, format)
    assert list(tmp_path.iterdir()) == []
    export(made(1), tmp_path, "saelens")
    with pytest.raises(BadInput, match="already holds cfg"):
        export(made(1), tmp_path, "saelens")


def sae_weights(seed: int = 3, **more: Tensor) -> Weights:
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, D), "b_dec": (D,)}
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()} | more


def linear_weights(seed: int = 3, **more: Tensor) -> Weights:
    g = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (LATENTS, D), "encoder.bias": (LATENTS,), "decoder.weight": (D, LATENTS)}
    return {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()} | {
        name.replace("_bias", ".bias"): tensor for name, tensor in more.items()
    }


def folder_of(place: Path, config: Any, weights: Weights, names: tuple[str, str] | None = None) -> Path:
    folder = fresh(place)
    folder.mkdir()
    names = names or (
        ("config.json", "ae.safetensors")
        if "trainer" in config or "dict_class" in config
        else ("cfg.json", "sae_weights.safetensors")
    )
    (folder / names[0]).write_text(json.dumps(config))
    save_file(weights, folder / names[1])
    return folder


THRESHOLD = torch.linspace(-0.2, 1.0, LATENTS)
NEW = {"d_in": D, "d_sae": LATENTS, "dtype": "float32", "normalize_activations": "none"}
SAELENS: dict[str, tuple[dict[str, Any], Weights, float | None]] = {
    "standard": ({"architecture": "standard"}, sae_weights(), None),
    "not centred": ({"architecture": "standard", "apply_b_dec_to_input": False}, sae_weights(), None),
    "jumprelu": ({"architecture": "jumprelu"}, sae_weights(threshold=THRESHOLD), None),
    "log": ({"architecture": "jumprelu"}, sae_weights(log_threshold=THRESHOLD), None),
    "batchtopk saved": ({"architecture": "jumprelu"}, sae_weights(threshold=torch.full((LATENTS,), 0.7)), None),
    "topk": ({"architecture": "topk", "k": 2, "rescale_acts_by_decoder_norm": True}, sae_weights(), None),
    "batchtopk": (
        {"architecture": "batchtopk", "k": 2.0, "rescale_acts_by_decoder_norm": True},
        sae_weights(topk_threshold=torch.tensor(0.5, dtype=torch.float64)),
        None,
    ),
    "scaled": ({"architecture": "standard", "normalize_activations": "expected_average_only_in"}, sae_weights(), 2.5),
    "scaled, not centred": (
        {"architecture": "jumprelu", "normalize_activations": True, "apply_b_dec_to_input": False},
        sae_weights(threshold=THRESHOLD),
        0.4,
    ),
    "old topk": (
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}, "hook_point": "blocks.3.hook_resid_pre"},
        sae_weights(),
        None,
    ),
    "tuned": (
        {"architecture": "standard", "finetuning_scaling_factor": True},
        sae_weights(scaling_factor=torch.linspace(0.5, 2, LATENTS)),
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAELENS)
def test_a_saelens_sae_gives_saelenss_codes(place: Path, name: str):
    cfg, weights, scale = SAELENS[name]
    folder = folder_of(place, NEW | cfg, weights)
    opened = open_dictionary(folder, scale=scale)
    some, x = opened.dictionary, torch.randn(30, D, generator=torch.Generator().manual_seed(1))
    said = {"architecture": "topk", "k": 2} | cfg if name == "old topk" else cfg
    if "log_threshold" in weights:
        weights = weights | {"threshold": weights["log_threshold"].exp()}
    codes, out = saelens_says(said, weights, x, scale or 1.0)
    agree(some.codes(x[:, None]), codes)
    torch.testing.assert_close(some.reconstruct(x[:, None])[:, 0], out.float(), atol=1e-4, rtol=1e-4)
    assert (some.thresholds is not None) == (name in ("jumprelu", "log", "scaled, not centred"))
    assert some.kind == ("relu" if name in ("standard", "not centred", "scaled", "tuned") else "batch_topk")
    assert opened.origin.layer == (2 if name == "old topk" else None)


LEARNT = torch.tensor(0.6)
CLASSES: dict[str, Weights] = {
    "AutoEncoder": linear_weights(bias=torch.ones(D)),
    "AutoEncoderNew": linear_weights(decoder_bias=torch.ones(D)),
    "AutoEncoderTopK": linear_weights(b_dec=torch.ones(D), k=torch.tensor(2), threshold=torch.tensor(-1.0)),
    "BatchTopKSAE": linear_weights(b_dec=torch.ones(D), k=torch.tensor(2), threshold=LEARNT),
    "MatryoshkaBatchTopKSAE": sae_weights(
        k=torch.tensor(2), threshold=LEARNT, group_sizes=torch.tensor([2, 4])
    ),
    "JumpReluAutoEncoder": sae_weights(threshold=THRESHOLD.abs()),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_class_of_dictionary_learning_gives_its_own_codes(place: Path, kind: str):
    trainer = {"dict_class": kind, "activation_dim": D, "dict_size": LATENTS, "layer": 4, "lm_name": "a/b"}
    opened = open_dictionary(folder_of(place, {"trainer": trainer, "buffer": {}}, CLASSES[kind]))
    some, x = opened.dictionary, torch.randn(30, D, generator=torch.Generator().manual_seed(1))
    codes, out = dictionary_learning_says(kind, CLASSES[kind], x)
    agree(some.codes(x[:, None]), codes)
    torch.testing.assert_close(some.reconstruct(x[:, None])[:, 0], out.float(), atol=1e-4, rtol=1e-4)
    assert (opened.origin.model, opened.origin.layer) == ("a/b", 4)


def cross_weights(**more: Tensor) -> Weights:
    g = torch.Generator().manual_seed(4)
    return {
        "encoder.weight": torch.randn(2, D, LATENTS, generator=g),
        "encoder.bias": torch.randn(LATENTS, generator=g),
        "decoder.weight": torch.randn(2, LATENTS, D, generator=g),
        "decoder.bias": torch.randn(2, D, generator=g),
        "activation_mean": 5 * torch.randn(2, D, generator=g),
        "activation_std": torch.ones(2, D),
        "activation_global_scale": torch.tensor([0.5, 2.0]),
        "target_rms": torch.tensor(1.0),
    } | more


HUB = {"activation_dim": D, "dict_size": LATENTS, "num_layers": 2, "k": 3}
OF_HUB = ("config.json", "model.safetensors")


@pytest.mark.parametrize(("norm", "number"), [("CROSSCODER", 1), ("SAE", 2), ("MIXED", 3), ("NONE", 4), ("DECOUPLED", 5)])  # fmt: skip
def test_the_forks_crosscoder_gives_its_own_codes(place: Path, norm: str, number: int):
    threshold = torch.tensor([1.2, 1.2] if norm == "DECOUPLED" else 1.2)
    weights = cross_weights(
        threshold=threshold, k=torch.tensor(3), code_normalization_id=torch.tensor(number)
    )
    # A compiled crosscoder, and one latent of the tuned model's own.
    weights["decoder.weight"][0, 2] = 0
    kept = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    config = HUB | {"code_normalization": norm, "code_normalization_alpha_cc": 0.3}
    some = load_dictionary(folder_of(place, config | {"dict_class": "BatchTopKCrossCoder"}, kept, OF_HUB))
    x = rows_for(some)
    codes, out, _ = fork_says(config, weights, x)
    agree(some.codes(x), codes.amax(1))
    torch.testing.assert_close(some.reconstruct(x), out.float(), atol=1e-3, rtol=1e-4)
    assert some.owner.tolist() == [0, 0, 2, 0, 0, 0]


def test_a_crosscoder_that_reads_one_model_and_has_no_normaliser(place: Path):
    weights = cross_weights(activation_mean=torch.full((2, D), float("nan")))
    weights["encoder.weight"] = weights["encoder.weight"][:1]
    folder = folder_of(place, HUB | {"encoder_layers": [1]}, weights, OF_HUB)
    some = load_dictionary(folder)
    assert bool((some.encoder[0] == 0).all())
    assert torch.equal(some.encoder[1:], weights["encoder.weight"])
    assert (some.scale.tolist(), bool((some.mean == 0).all()), some.kind) == ([1.0, 1.0], True, "relu")


def wrong(**changes: Any) -> tuple[dict[str, Any], Weights]:
    return NEW | changes, sae_weights()


def without(name: str) -> Weights:
    return {key: value for key, value in sae_weights().items() if key != name}


def trained(kind: str | None, weights: Weights, **more: Any) -> tuple[dict[str, Any], Weights]:
    return {"trainer": {"dict_class": kind, "activation_dim": D, "dict_size": LATENTS, **more}}, weights


BAD: dict[str, tuple[tuple[Any, Weights], str]] = {
    "another architecture": (wrong(architecture="gated"), "no SAELens architecture.*'gated'.*Known"),
    "an activation": (wrong(activation_fn="tanh-relu"), "activation 'tanh-relu'"),
    "heads": (wrong(hook_name="blocks.1.attn.hook_z"), "heads of an attention layer"),
    "by row": (wrong(normalize_activations="layer_norm"), "normalises every hidden state by itself"),
    "factor elsewhere": (wrong(normalize_activations="expected_average_only_in"), "give it as the scale"),
    "not a flag": (wrong(apply_b_dec_to_input="no"), "not true or false"),
    "no k": (wrong(architecture="topk"), r"how many codes a row keeps \(k\)"),
    "half a code": (wrong(architecture="topk", k=1.5), "k is 1.5"),
    "sizes": (wrong(d_in=D + 1), "4 for d, not 5 as the configuration says"),
    "a key too few": ((NEW, without("b_dec")), r"lacks b_dec \(it has W_dec, W_enc, b_enc\)"),
    "a key too many": ((NEW, sae_weights(W_skip=torch.ones(D, D))), "also holds W_skip"),
    "transposed": ((NEW, sae_weights() | {"W_enc": torch.ones(LATENTS, D)}), "W_enc is .6, 4.: 6 for d"),
    "NaN": ((NEW, sae_weights() | {"b_enc": torch.full((LATENTS,), float("nan"))}), "6 values that are not finite"),
    "whole numbers": ((NEW, sae_weights() | {"b_enc": torch.ones(LATENTS, dtype=torch.int64)}), "floating-point"),
    "empty": ((NEW, {"W_enc": torch.ones(D, 0), "W_dec": torch.ones(0, D), "b_enc": torch.ones(0), "b_dec": torch.ones(D)}), "is empty"),
    "axes": ((NEW, sae_weights() | {"b_enc": torch.ones(LATENTS, 1)}), r"where \[latent\] belongs"),
    "factor": ((NEW, sae_weights(scaling_factor=torch.full((LATENTS,), 2.0))), "one of the two is wrong"),
    "a class": (trained("GatedAutoEncoder", {}), "dictionary_learning class.*GatedAutoEncoder"),
    "no class": (trained(None, linear_weights(b_dec=torch.ones(D))), "fit several"),
    "not learnt": (trained("BatchTopKSAE", linear_weights(b_dec=torch.ones(D), threshold=torch.tensor(-1.0))), "not learnt its threshold"),
    "half a normaliser": (trained("BatchTopKSAE", linear_weights(b_dec=torch.ones(D), target_rms=LEARNT)), "not the rest"),
    "two thresholds": (trained("BatchTopKCrossCoder", cross_weights(threshold=torch.tensor([1.0, 2.0]))), "another threshold for each"),
    "three models": (trained("CrossCoder", {"encoder.weight": torch.ones(3, D, LATENTS), "encoder.bias": torch.ones(LATENTS),
        "decoder.weight": torch.ones(3, LATENTS, D), "decoder.bias": torch.ones(3, D)}), "of 3 models"),
    "a norm": (trained("CrossCoder", cross_weights(code_normalization_id=torch.tensor(9))), "is 9"),
    "a trainer": (({"trainer": 3}, sae_weights()), "'trainer' is no object"),
    "a language model": (({"architectures": ["Llama"], "dict_class": 1}, sae_weights()), "language model"),
    "no object": (([1], sae_weights()), "holds a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said(place: Path, name: str):
    (config, weights), match = BAD[name]
    with pytest.raises(BadInput, match=match):
        load_dictionary(folder_of(place, config, weights))


def test_folders_and_files_that_are_no_dictionary(tmp_path: Path):
    def said(source: Path, **more: Any) -> str:
        with pytest.raises(BadInput) as raised:
            load_dictionary(source, **more)
        return str(raised.value)

    assert "neither dictionary.safetensors" in said(tmp_path)
    assert "There is no file" in said(tmp_path / "dictionary.safetensors")
    (tmp_path / "ae.pt").write_bytes(b"\x80\x04.")
    for source in (tmp_path, tmp_path / "ae.pt"):
        assert "can run code" in said(source)
        assert "weights_only=True" in said(source)
    (tmp_path / "config.json").write_text("{}")
    assert "can run code" in said(tmp_path)
    (tmp_path / "config.json").write_text("{" * 5)
    assert "no JSON" in said(tmp_path)
    inner = tmp_path / "all" / "blocks.1"
    export(made(1), inner, "saelens")
    assert "name one of blocks.1" in said(inner.parent)
    assert load_dictionary(inner, d_model=D).d == load_dictionary(inner / "sae_weights.safetensors").d == D
    assert "states of 4 numbers, and this pair's have 9" in said(inner, d_model=9)
    assert "leave the scale away" in said(inner, scale=2.0)
    assert "at most 100 are read" in said(inner, largest=100)
    data = (inner / "sae_weights.safetensors").read_bytes()
    (inner / "sae_weights.safetensors").write_bytes(data[:-8])
    assert "cut short" in said(inner)
    (inner / "sae_weights.safetensors").unlink()
    assert "has cfg.json and no sae_weights.safetensors" in said(inner)
    (inner / "cfg.json").write_text(" " * (2**20 + 1))
    assert "at most 1,048,576" in said(inner)
    (tmp_path / "all" / "params.npz").write_bytes(b"")
    assert "Gemma Scope" in said(tmp_path / "all")


@pytest.mark.parametrize(
    "header",
    ["[1]", "{", "[" * 100_000, '{"format": "finetrace dictionary 1"}', '{"format": "finetrace dictionary 1", "threshold": "0", "kind": "relu", "code_norm": "none"}'],
)  # fmt: skip
def test_a_file_of_ours_that_somebody_made_up_is_refused(tmp_path: Path, header: str):
    tensors = {"encoder": torch.ones(1, D, LATENTS, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "dictionary.safetensors", {"dictionary": header})
    with pytest.raises(BadInput, match=r"not a dictionary|what was written"):
        load_dictionary(tmp_path)


def test_a_hub_id_fetches_the_configuration_first_and_its_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / ("a" * 40)
    export(
        made(1),
        root / "blocks.2",
        "saelens",
        about={"model_name": "m", "hook_name": "blocks.2.hook_resid_post"},
    )
    asked: list[Any] = []

    def fetch(repo: str, **how: Any) -> str:
        asked.append((repo, how["revision"], how["allow_patterns"]))
        return str(root)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    origin = open_dictionary("org/saes/blocks.2").origin
    assert (origin.revision, origin.model, origin.layer) == ("a" * 40, "m", 2)
    assert asked[0][:2] == ("org/saes", None)
    assert "blocks.2/cfg.json" in asked[0][2]
    assert not any("sae_weights" in pattern for pattern in asked[0][2])
    assert asked[1] == ("org/saes", "a" * 40, ["blocks.2/sae_weights.safetensors"])
