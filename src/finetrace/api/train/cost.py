"""What a training would take: memory, time and disk from the checkpoint's configuration, before any weight loads."""

from __future__ import annotations

import math
import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from finetrace.api.names import resolve
from finetrace.api.train.rows import TrainingRows
from finetrace.core.errors import BadInput, ModelError
from finetrace.finetune.batches import Prepared, Truncation, prepare
from finetrace.finetune.model import compute_dtype
from finetrace.finetune.recipe import ALL_LINEAR, TrainRecipe
from finetrace.finetune.scan import ScanResult, scan
from finetrace.models.files import validate
from finetrace.models.loading import DTYPES, LOAD_ERRORS, pick_device, quiet
from finetrace.models.source import one_line
from finetrace.models.source import resolve as resolve_source
from finetrace.models.tokens import load_tokenizer

__all__ = ["TrainCost", "estimate"]

# Bytes a weight in 4 bits takes: half a byte, an 8-bit scale per 64 of them, a float32 one per 256 such scales.
_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# What else runs beside the matrix products; 4-bit weights are written out again at every use.
_OVERHEAD, _UNPACKING = 1.6, 1.5
# Seconds a layer takes for one batch whatever its size: what small models spend most of their time on.
_PER_LAYER = 0.005
# Copies of one batch's logits that are alive at once, in float32: logits, log softmax, gradient.
_LOGITS = 3


@dataclass(frozen=True)
class TrainCost:
    """Bytes, counts and seconds. base: the frozen weights. adapter: what is trained, float32. optimiser: its gradients
    and AdamW's two moments. activations: what one batch of the longest rows keeps for the backward pass.

    seconds: wall time on `device`, to about a factor of 2. disk: of all that is written; free: there. notes: what will
    stand in the way.
    """

    base: int
    adapter: int
    optimiser: int
    activations: int
    trainable: int
    total: int
    steps: int
    tokens: int
    seconds: float
    disk: int
    free: int
    dtype: str
    device: str
    truncation: Truncation
    scan: ScanResult
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return self.base + self.adapter + self.optimiser + self.activations


def estimate(recipe: TrainRecipe, rows: TrainingRows, out: Path, *, device: str = "auto") -> TrainCost:
    """The cost of a training. Reads the rows and the checkpoint's configuration, and times one short matrix product."""
    where, notes = pick_device(device), []
    try:
        dtype = compute_dtype(recipe, where)
    except BadInput as error:
        dtype = DTYPES[recipe.train.dtype]
        notes.append(str(error))
    source = resolve_source(resolve(recipe.model), revision=recipe.revision)
    if source.kind != "full":
        raise ModelError(f"{source.name} is an adapter: name the model it was trained on as the base.")
    validate(source)
    prepared = prepare(rows.rows, load_tokenizer(source.name, source.folder), recipe.data.max_tokens)
    model = _hollow(source.folder, recipe, dtype)
    sizes = _sizes(model, recipe, dtype)
    steps, read = _steps(recipe, prepared)
    disk = 4 * sizes.trainable * (1 + (3 * recipe.train.keep if recipe.train.checkpoint_every else 0))
    free = shutil.disk_usage(_existing(out)).free
    if disk > free:
        notes.append(f"{out} has {free / 2**30:.2f} GiB free, and {disk / 2**30:.2f} GiB will be written.")
    return TrainCost(
        base=sizes.base,
        adapter=4 * sizes.trainable,
        optimiser=12 * sizes.trainable,
        activations=_activations(model, recipe, prepared),
        trainable=sizes.trainable,
        total=sizes.total,
        steps=steps,
        tokens=read,
        seconds=_seconds(recipe, sizes, (steps, read), prepared, (dtype, where), model.config),
        disk=disk,
        free=free,
        dtype="nf4" if recipe.quant == "nf4" else str(dtype).removeprefix("torch."),
        device=str(where),
        truncation=prepared.truncation,
        scan=scan(rows.rows),
        notes=tuple(notes),
    )


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return folder if folder.exists() else _existing(folder.parent)


def _hollow(folder: Path, recipe: TrainRecipe, dtype: torch.dtype) -> Any:
    """The model that would be trained, with shapes and no values."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with quiet(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except LOAD_ERRORS as error:
        raise ModelError(f"The model in {folder} cannot be laid out: {one_line(error)}") from error
    if recipe.kind == "full":
        return model.train()
    with quiet():
        from peft import LoraConfig, get_peft_model

    lora = recipe.lora
    settings = LoraConfig(
        r=lora.r,
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets),
        layers_to_transform=None if lora.layers is None else list(lora.layers),
        use_dora=False,  # its magnitudes need the weights' norms; they are counted below
        task_type="CAUSAL_LM",
    )
    try:
        with quiet(), torch.device("meta"):
            return get_peft_model(model.requires_grad_(False), settings).train()
    except ValueError as error:
        raise BadInput(f"lora.targets do not fit this base: {one_line(error, 200)}") from error


@dataclass(frozen=True)
class _Sizes:
    """products: parameters that every token is multiplied with. base: bytes of the frozen weights."""

    base: int
    trainable: int
    total: int
    products: int


def _sizes(model: Any, recipe: TrainRecipe, dtype: torch.dtype) -> _Sizes:
    width = torch.tensor([], dtype=dtype).element_size()
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    kept = {id(p) for module in outer if module is not None for p in module.parameters()}
    matrices = [p for _, p in model.named_parameters() if p.ndim >= 2 and id(p) not in kept]
    base = 0.0
    for _, p in frozen:
        packed = recipe.quant == "nf4" and p.ndim == 2 and id(p) not in kept
        base += p.numel() * (_NF4 if packed else width)
    magnitudes = 0
    if recipe.kind == "lora" and recipe.lora.dora:
        magnitudes = sum(p.shape[0] for n, p in model.named_parameters() if "lora_B" in n)
    trainable = sum(p.numel() for p in trained) + magnitudes
    head = model.get_output_embeddings()
    return _Sizes(
        base=int(base),
        trainable=trainable,
        total=sum(p.numel() for p in model.parameters()) + magnitudes,
        products=sum(p.numel() for p in matrices) + (0 if head is None else head.weight.numel()),
    )


def _steps(recipe: TrainRecipe, prepared: Prepared) -> tuple[int, int]:
    """Steps of the training, and tokens that it reads, padding included."""
    lengths = sorted(map(len, prepared.examples))
    mean = sum(lengths) / len(lengths)
    rows_a_step = recipe.train.batch * recipe.train.accumulate
    count = len(lengths)
    if recipe.data.packing:
        count = math.ceil(sum(lengths) / recipe.data.max_tokens)
        mean = longest = float(recipe.data.max_tokens)
    else:
        # Of a batch drawn at random, the longest row: that many order statistics up.
        longest = lengths[min(len(lengths) - 1, int(len(lengths) * (1 - 1 / (recipe.train.batch + 1))))]
    steps = recipe.train.max_steps or math.ceil(recipe.train.epochs * math.ceil(count / rows_a_step))
    return steps, int(steps * rows_a_step * max(mean, longest))


def _longest(recipe: TrainRecipe, prepared: Prepared) -> int:
    return recipe.data.max_tokens if recipe.data.packing else max(map(len, prepared.examples))


def _activations(model: Any, recipe: TrainRecipe, prepared: Prepared) -> int:
    """Bytes that a forward pass on a batch of the longest rows keeps, counted on shapes alone, and its logits.

    Attention's own matrices are counted as if they were kept; fused kernels keep less.
    """
    batch, tokens = recipe.train.batch, _longest(recipe, prepared)
    kept: dict[int, torch.UntypedStorage] = {}
    owned = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device="meta")
    try:
        with warnings.catch_warnings(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            warnings.simplefilter("ignore")
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"What training keeps cannot be counted for this model: {one_line(error)}"
        ) from error
    config = model.config.get_text_config(decoder=True)
    held = sum(storage.nbytes() for storage in kept.values())
    logits = _LOGITS * 4 * batch * tokens * config.vocab_size
    if recipe.train.gradient_checkpointing:
        layers = config.num_hidden_layers
        held = held // layers + layers * batch * tokens * config.hidden_size * 4
    return held + logits


def _seconds(
    recipe: TrainRecipe,
    sizes: _Sizes,
    read: tuple[int, int],
    prepared: Prepared,
    computing: tuple[torch.dtype, torch.device],
    config: Any,
) -> float:
    """Products of the forward pass (2 a parameter), the backward one (2, or 4 where weights are trained) and, with
    gradient checkpointing, a second forward one, at the rate of a product of about the model's own shape; and what a
    batch costs however small it is."""
    dtype, device = computing
    passes = (6 if recipe.kind == "full" else 4) + (2 if recipe.train.gradient_checkpointing else 0)
    text, (steps, tokens) = config.get_text_config(decoder=True), read
    hidden = text.hidden_size
    rows = max(8, min(2048, recipe.train.batch * _longest(recipe, prepared)))
    left, right = (
        torch.ones(shape, dtype=dtype, device=device) for shape in ((rows, hidden), (hidden, hidden))
    )
    seconds = min(_timed(left, right) for _ in range(3))
    rate = 2 * rows * hidden * hidden / seconds
    unpacking = _UNPACKING if recipe.quant == "nf4" else 1.0
    products = _OVERHEAD * unpacking * passes * sizes.products * tokens / rate
    return products + _PER_LAYER * text.num_hidden_layers * steps * recipe.train.accumulate


def _timed(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in range(4):
        product = left @ right
    float(product[0, 0])  # waits for the device
    return max((time.perf_counter() - began) / 4, 1e-7)
