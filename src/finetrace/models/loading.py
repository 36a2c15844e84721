"""Loading one model quietly, refusing what transformers would silently make up, and sharing identical tensors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from finetrace.core.errors import BadInput, MissingExtra, ModelError
from finetrace.models.files import cut, kept, weight_files
from finetrace.models.source import Source, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What transformers raises on a folder that it cannot read: listed, so that a bug of ours is not blamed on the folder.
LOAD_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


class _NoKernelNote(logging.Filter):
    """Drops bitsandbytes' note that an optional CPU kernel is absent, printed whenever anything imports peft."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


# Here and not in `quiet`: bitsandbytes is imported by whoever imports peft first, inside a `quiet` block or not.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_NoKernelNote())


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, load reports or warnings of transformers and peft inside; their settings come back after."""
    from transformers.utils import logging as theirs

    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()


def load_model(
    source: Source,
    *,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str | None,
    trust_remote_code: bool,
    quantisation: Any = None,
    spread: bool = False,
) -> Any:
    """The causal language model in a folder: frozen, in eval mode, on `device`.

    A tensor that the files lack is a ModelError: transformers would fill it with random numbers. quantisation: a
    configuration of transformers', such as `nf4`'s. spread: its layers are laid out over all devices instead.
    """
    from safetensors import SafetensorError

    extra: dict[str, Any] = (
        {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    )
    if quantisation is not None:
        extra |= {"quantization_config": quantisation, "device_map": {"": device}}
    if spread:
        extra |= {"device_map": "auto"}
    try:
        with quiet():
            read = _from_kept if source.left_out else _from_folder
            found: Any = read(
                source,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **extra,
            )
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise ModelError(f"{source.name} could not be loaded: {one_line(error)}") from error
    model, report = found
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} tensors that its config.json asks for, first {missing[0]}: "
            "the checkpoint is incomplete, or of another architecture."
        )
    if quantisation is not None:
        keep_packing(model)
    if quantisation is not None or spread:
        return model.eval().requires_grad_(False)
    return model.to(device).eval().requires_grad_(False)


def _from_folder(source: Source, *, trust_remote_code: bool, **options: Any) -> Any:
    return _auto_class(source, trust_remote_code).from_pretrained(
        source.folder, local_files_only=True, trust_remote_code=trust_remote_code, **options
    )


def _from_kept(source: Source, *, trust_remote_code: bool, **options: Any) -> Any:
    """Of a checkpoint some of whose blocks are left out: these are never read."""
    import transformers as t
    from safetensors import safe_open

    config = t.AutoConfig.from_pretrained(
        source.folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    language = t.MODEL_FOR_CAUSAL_LM_MAPPING
    known: Any = language if type(config) in language else t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    opened = {path: safe_open(path, framework="pt") for path in weight_files(source)}
    tensors = {name: opened[path].get_slice(entry.name) for path, entry, name in kept(source)}
    found = known[type(config)].from_pretrained(
        None, config=cut(config, source), state_dict=tensors, **options
    )
    if (source.folder / "generation_config.json").is_file():
        found[0].generation_config = t.GenerationConfig.from_pretrained(source.folder, local_files_only=True)
    return found


def nf4(compute: torch.dtype) -> Any:
    """Weights in 4 bits (NF4), their scales quantised too, multiplied in `compute`."""
    if find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "train")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_packing(model: nn.Module) -> int:
    """Stops 4-bit layers from repacking their weights in place; returns how many there are.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 packs a weight anew at the first forward without gradients, after which
    training fails and merging is silently wrong.
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def _auto_class(source: Source, trust_remote_code: bool) -> Any:
    """The loader for the folder's architecture: of language models, or of the models that also read images."""
    import transformers as t

    config = t.AutoConfig.from_pretrained(
        source.folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    with_images = type(config) in t.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    language = type(config) in t.MODEL_FOR_CAUSAL_LM_MAPPING
    return t.AutoModelForImageTextToText if with_images and not language else t.AutoModelForCausalLM


def share_identical(model: nn.Module, base: nn.Module) -> int:
    """Makes every tensor of `model` that is bit-identical with the base's use the base's storage.

    Returns the bytes freed. Tied tensors are counted once.
    """
    theirs = dict(base.named_parameters(remove_duplicate=False)) | dict(
        base.named_buffers(remove_duplicate=False)
    )
    freed: dict[int, int] = {}
    for prefix, module in model.named_modules():
        stores: Any = (module._parameters, module._buffers)
        for store in stores:
            for name, own in store.items():
                other = theirs.get(f"{prefix}.{name}" if prefix else name)
                if own is None or other is None or own is other or not _identical(own, other):
                    continue
                freed[own.untyped_storage().data_ptr()] = own.untyped_storage().nbytes()
                store[name] = other
    return sum(freed.values())


def _identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return same_kind and torch.equal(one, other)


def unique_bytes(*models: nn.Module) -> int:
    """Bytes of the distinct storages behind all parameters and buffers of these models together."""
    return sum(bytes_by_device(*models).values())


def bytes_by_device(*models: nn.Module) -> dict[str, int]:
    """Device -> bytes there, as `unique_bytes` counts them."""
    storages: dict[tuple[str, int], int] = {}
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            storages[str(tensor.device), storage.data_ptr()] = storage.nbytes()
    found: dict[str, int] = {}
    for (device, _), size in storages.items():
        found[device] = found.get(device, 0) + size
    return found


def pick_device(wanted: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise BadInput(f"'{wanted}' is not a device: auto, cpu, cuda, cuda:1 and mps are.") from None
    absent = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if absent:
        raise BadInput(f"There is no {device.type} device here: use --device cpu or auto.")
    if device.type == "meta":
        raise BadInput("On the device 'meta' nothing is computed: use --device cpu or auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise BadInput(f"There is no {device} here: the GPUs are {known}.")
    return device


def pick_dtype(wanted: str, device: torch.device, float32_bytes: int, own: str | None) -> torch.dtype:
    """ "auto" is float32 on a CPU and where both sides fit in 60% of the free memory, else the checkpoint's own."""
    if wanted in DTYPES:
        return DTYPES[wanted]
    if wanted != "auto":
        raise BadInput(f"'{wanted}' is not a dtype: auto, {', '.join(DTYPES)} are.")
    if device.type != "cuda":
        return torch.float32
    free, _ = torch.cuda.mem_get_info(device)
    return torch.float32 if float32_bytes <= 0.6 * free else DTYPES.get(own or "", torch.bfloat16)
