"""Every wrong checkpoint is one clear line: what, why, how to mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import save_base, save_full, save_lora

from finetrace.core.errors import BadInput, ModelError
from finetrace.models import open_pair

Bases = Callable[[str], Path]


def refused(error: type[Exception], match: str, *arguments: Any, **options: Any) -> None:
    """open_pair and loading end in an `error` of one line that matches."""
    with pytest.raises(error, match=match) as caught:
        open_pair(*arguments, **options).load()
    assert "\n" not in str(caught.value)


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def changed(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    weights = load_file(folder / file)
    change(weights)
    save_file(weights, folder / file, {"format": "pt"})
    return folder


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    refused(ModelError, "There is no folder", tmp_path / "nowhere", None)
    refused(ModelError, "There is no folder", str(tmp_path / "nowhere"), None)
    refused(ModelError, "There is no folder", "./nowhere", None)


def test_a_file_instead_of_a_folder(base_of: Bases) -> None:
    refused(ModelError, "is a file; give the folder", base_of("llama") / "config.json", None)


def test_a_name_that_is_neither_path_nor_hub_id() -> None:
    refused(ModelError, "neither a local folder nor a hub id", "org/../../etc", None)
    refused(ModelError, "neither a local folder nor a hub id", "a b c", None)


def test_a_folder_without_a_checkpoint(base_of: Bases, tmp_path: Path) -> None:
    refused(ModelError, "neither adapter_config.json .* nor config.json", base_of("llama"), tmp_path)


@pytest.mark.parametrize(
    ("raised", "match"),
    [
        ("LocalEntryNotFoundError", "the hub cannot be reached"),
        ("OfflineModeIsEnabled", "the hub cannot be reached"),
        ("RepositoryNotFoundError", "no hub repository 'org/repo'"),
        ("GatedRepoError", "org/repo is gated"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses(raised: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, raised)
    # Made without its constructor, which wants a response of whatever HTTP library the hub's client uses.
    error = kind.__new__(kind)

    def fetch(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    refused(ModelError, match, "org/repo/sub", None, revision="v9")


def test_a_subfolder_of_a_hub_repository(
    base_of: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    save_lora(tmp_path / "c0ffee", base_of("llama"), name="sub")
    asked: list[tuple[str, Any]] = []

    def fetch(repo: str, **options: Any) -> str:
        asked.append((repo, options["allow_patterns"]))
        return str(tmp_path / "c0ffee")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    pair = open_pair(base_of("llama"), "org/repo/sub").load()
    assert pair.kind("tuned") == "adapter"
    assert pair.source("tuned").revision == "c0ffee"
    assert asked[0][0] == "org/repo"
    assert all(pattern.startswith("sub/") for pattern in asked[0][1])


def test_an_adapter_as_the_base(base_of: Bases, tmp_path: Path) -> None:
    refused(ModelError, "is an adapter: give the model", save_lora(tmp_path, base_of("llama")), None)


@pytest.mark.parametrize("keep", [4, 100, -100])
def test_truncated_weights(keep: int, base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(ModelError, "cut short", base, None)


def test_a_truncated_adapter(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, base_of("llama"))
    file = tuned / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    refused(ModelError, "cut short", base_of("llama"), tuned)


@pytest.mark.parametrize("junk", [b"{not json", b'{"a": 3}', b'{"a": {"dtype": "F32"}}', b"[1, 2]"])
def test_corrupt_headers(junk: bytes, base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    (base / "model.safetensors").write_bytes(len(junk).to_bytes(8, "little") + junk)
    refused(ModelError, "corrupt", base, None)


def test_impossible_offsets(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(ModelError, "the tensor a has impossible offsets", base, None)


def test_an_index_that_names_an_absent_shard(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", shard="20KB")
    next(base.glob("model-00002*.safetensors")).unlink()
    refused(ModelError, "model-00002.* which is missing", base, None)


def test_an_index_that_leads_out_of_its_folder(tmp_path: Path) -> None:
    base = save_base(tmp_path, "llama", shard="20KB")
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    refused(ModelError, "outside its folder", base, None)


def test_pickled_weights(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(ModelError, "only pickled weights", base, None)


def test_no_weights(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    (base / "model.safetensors").unlink()
    refused(ModelError, "model.safetensors is missing", base, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_that_are_not_finite(
    value: float, dtype: torch.dtype, base_of: Bases, tmp_path: Path
) -> None:
    base = copied(base_of("llama"), tmp_path / "base")

    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            weights[name] = weights[name].to(dtype)
        weights["model.layers.1.mlp.up_proj.weight"][2, 3] = value

    changed(base, "model.safetensors", spoil)
    refused(ModelError, "NaN or infinite weights in model.layers.1.mlp.up_proj.weight", base, None)


def test_an_adapter_that_is_not_finite(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, base_of("llama"))
    changed(tuned, "adapter_model.safetensors", lambda w: next(iter(w.values())).fill_(float("nan")))
    refused(ModelError, "NaN or infinite", base_of("llama"), tuned)


def test_an_adapter_of_another_shape(base_of: Bases, tmp_path: Path) -> None:
    wide = save_base(tmp_path, "llama", d=64, name="wide")
    refused(ModelError, r"another shape.*\(4, 128\).*\(4, 64\)", base_of("llama"), save_lora(tmp_path, wide))


def test_an_adapter_of_another_architecture(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, base_of("gpt2"), targets=["c_attn"])
    refused(ModelError, "does not fit its base", base_of("llama"), tuned)


def test_a_full_checkpoint_of_another_shape(base_of: Bases, tmp_path: Path) -> None:
    wide = save_base(tmp_path, "llama", d=64, name="wide")
    refused(ModelError, "another shape than the base: its hidden_size is 64", base_of("llama"), wide)


def test_a_full_checkpoint_that_lacks_tensors(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_full(tmp_path, base)
    changed(tuned, "model.safetensors", lambda w: w.pop("model.layers.0.self_attn.k_proj.weight"))
    refused(ModelError, "lacks 1 tensors .* model.layers.0.self_attn.k_proj.weight", base, tuned)


def test_other_kinds_of_adapter(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, base_of("llama"))
    config = tuned / "adapter_config.json"
    fields = json.loads(config.read_text())
    for change, match in (
        ({"peft_type": "IA3"}, "IA3 adapter; LoRA"),
        ({"bias": "all"}, "trains the base's biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "starts from pissa_niter_4 factors"),
        ({"layer_replication": [[0, 2]]}, "repeats the base's layers"),
    ):
        config.write_text(json.dumps(fields | change))
        refused(ModelError, match, base_of("llama"), tuned)
    config.write_text("{")
    refused(ModelError, "not readable JSON", base_of("llama"), tuned)


def test_an_adapter_with_an_embedding_of_its_own(base_of: Bases, tmp_path: Path) -> None:
    base = base_of("llama")
    tuned = save_lora(tmp_path, base, targets=["q_proj"])
    own = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    key = "base_model.model.model.embed_tokens.weight"
    changed(tuned, "adapter_model.safetensors", lambda w: w.update({key: own.clone()}))
    fit = open_pair(base, tuned).fit("tuned")
    assert fit is not None
    assert (fit.copies, fit.unexpected) == ((key,), ())
    changed(tuned, "adapter_model.safetensors", lambda w: w.update({key: own + 1}))
    refused(ModelError, "carries its own model.embed_tokens.weight", base, tuned)


def test_a_saved_module_that_is_not_in_the_file(base_of: Bases, tmp_path: Path) -> None:
    tuned = save_lora(tmp_path, base_of("llama"), targets=["q_proj"], modules_to_save=["lm_head"])
    changed(tuned, "adapter_model.safetensors", lambda w: [w.pop(k) for k in list(w) if "lm_head" in k])
    refused(ModelError, "says it saves .*lm_head", base_of("llama"), tuned)


def test_config_that_is_not_json(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    (base / "config.json").write_text("{")
    refused(ModelError, "config.json", base, None)


def test_an_unknown_architecture(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    fields = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(fields | {"model_type": "no_such_thing"}))
    refused(ModelError, "could not be loaded", base, None)


def test_no_tokenizer(base_of: Bases, tmp_path: Path) -> None:
    base = copied(base_of("llama"), tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    refused(ModelError, "has no tokenizer", base, None)
    assert open_pair(base, None, tokenizer=base_of("llama")).vocab_size == 64


def test_options(base_of: Bases) -> None:
    base = base_of("llama")
    refused(BadInput, "'int4' is not a dtype", base, None, dtype="int4")
    refused(BadInput, "'tpuu' is not a device", base, None, device="tpuu")
    refused(BadInput, "not supported yet", base, None, quantization="nf4")
    refused(BadInput, "A null cannot be called 'tuned'", base, None, nulls={"tuned": base})
    refused(BadInput, "neither a template nor a file", base, None, chat_template="nowhere.jinja")
