"""Codes, decoding, tags and files of a dictionary, against plain sums and against what a file may have become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import CODE_NORMS, Dictionary, code_weights

D, LATENTS, ROWS = 5, 7, 11


def made(models: int = 2, **changes: Any) -> Dictionary:
    g = torch.Generator().manual_seed(models)
    some = Dictionary(
        encoder=torch.randn(models, D, LATENTS, generator=g),
        encoder_bias=torch.randn(LATENTS, generator=g),
        decoder=torch.randn(models, LATENTS, D, generator=g),
        decoder_bias=torch.randn(models, D, generator=g),
        mean=torch.randn(models, D, generator=g),
        scale=torch.rand(models, generator=g) + 0.5,
        owner=torch.zeros(LATENTS, dtype=torch.int8),
        threshold=1.5,
        kind="batch_topk",
        code_norm="crosscoder" if models == 2 else "none",
    )
    return replace(some, **changes)


def rows(models: int = 2) -> torch.Tensor:
    return torch.randn(ROWS, models, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("models", [1, 2])
def test_codes_and_decode_are_the_sums_that_the_docstring_says(models: int):
    some, x = made(models), rows(models)
    codes = some.codes(x)
    for r in range(ROWS):
        z = [(x[r, m] - some.mean[m]) * some.scale[m] for m in range(models)]
        for j in range(LATENTS):
            pre = sum(float(z[m] @ some.encoder[m, :, j]) for m in range(models)) + float(
                some.encoder_bias[j]
            )
            weight = sum(float(some.decoder[m, j].norm()) for m in range(models)) if models == 2 else 1.0
            wanted = pre if pre * weight > some.threshold else 0.0
            assert float(codes[r, j]) == pytest.approx(wanted, abs=1e-5)
        for m in range(models):
            written = sum(codes[r, j] * some.decoder[m, j] for j in range(LATENTS)) + some.decoder_bias[m]
            back = written / some.scale[m] + some.mean[m]
            torch.testing.assert_close(some.decode(codes)[r, m], back, atol=1e-5, rtol=1e-5)
    assert 0 < int((codes > 0).sum()) < codes.numel()


def test_a_decoupled_code_is_left_out_of_the_model_where_it_is_too_weak():
    decoder = torch.zeros(2, LATENTS, D)
    decoder[0, :, 0], decoder[1, :, 0] = 1.0, 0.1
    some = made(decoder=decoder, code_norm="decoupled", threshold=0.5, decoder_bias=torch.zeros(2, D))
    codes = torch.zeros(2, LATENTS)
    codes[0, 0], codes[1, 0] = 1.0, 10.0
    written = (some.decode(codes) - some.mean) * some.scale[:, None]
    torch.testing.assert_close(written[:, :, 0], torch.tensor([[1.0, 0.0], [10.0, 1.0]]))
    assert bool((some.codes(rows()) >= 0).all())


def test_code_weights_of_every_norm():
    decoder = torch.zeros(2, 1, 2)
    decoder[0, 0, 0], decoder[1, 0, 1] = 3.0, 4.0
    wanted = {
        "crosscoder": [[7.0]],
        "sae": [[5.0]],
        "mixed": [[6.0]],
        "decoupled": [[3.0], [4.0]],
        "none": [[1.0]],
    }
    assert {norm: code_weights(decoder, norm).tolist() for norm in CODE_NORMS} == wanted


def test_tags_follow_the_decoder_norms():
    decoder = torch.zeros(2, LATENTS, D)
    decoder[0, :, 0] = torch.tensor([1.0, 0.0, 0.1, 1.0, 1.0, 1.0, 0.0])
    decoder[1, :, 0] = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.81, 0.5, 0.0])
    some = made(decoder=decoder)
    assert some.tags() == ["base-only", "tuned-only", "tuned-only", "shared", "shared", "other", "other"]
    with pytest.raises(BadInput, match="of one"):
        made(1).tags()


def test_a_file_gives_back_what_was_saved(tmp_path: Path):
    some, path = made(threshold=0.1 + 0.2), tmp_path / "dictionary.safetensors"
    some.save(path)
    again = Dictionary.load(path)
    assert (again.threshold, again.kind, again.code_norm) == (some.threshold, some.kind, some.code_norm)
    assert torch.equal(again.codes(rows()), some.codes(rows()))
    assert torch.equal(again.reconstruct(rows()), some.reconstruct(rows()))
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_file_that_is_not_whole_or_not_ours_is_refused(tmp_path: Path):
    path = tmp_path / "dictionary.safetensors"
    made().save(path)
    data = path.read_bytes()
    (tmp_path / "short").write_bytes(data[:-9])
    (tmp_path / "changed").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    save_file(load_file(path), tmp_path / "other")
    for name, match in {
        "short": "cut short",
        "changed": "what was written",
        "other": "not a dictionary of",
    }.items():
        with pytest.raises(BadInput, match=match):
            Dictionary.load(tmp_path / name)
    with pytest.raises(BadInput, match="no dictionary at"):
        Dictionary.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"encoder_bias": torch.zeros(3)}, "encoder_bias is"),
        ({"decoder": torch.full((2, LATENTS, D), float("nan"))}, "not finite"),
        ({"mean": torch.zeros(2, D, dtype=torch.float64)}, "float64"),
        ({"kind": "jumprelu"}, "its kind"),
        ({"code_norm": "l3"}, "its code norm"),
        ({"threshold": float("nan")}, "its threshold"),
        ({"encoder": torch.zeros(D, LATENTS)}, r"\[model, d, latent\]"),
    ],
)
def test_what_is_not_a_dictionary_is_said(changes: dict[str, Any], match: str):
    with pytest.raises(BadInput, match=match):
        made(**changes)


def test_rows_of_another_shape_are_refused():
    with pytest.raises(BadInput, match="of one model where two"):
        made(2).codes(rows(1))
    with pytest.raises(BadInput, match="Codes of 7"):
        made(2).decode(torch.zeros(1, 8))
