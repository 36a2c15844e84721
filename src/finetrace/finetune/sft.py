"""Supervised fine-tuning with LoRA or of all weights, for any causal language model that transformers loads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.core.errors import BadInput, DataError, ModelError
from finetrace.core.files import read_json, write_json
from finetrace.data.examples import Example
from finetrace.finetune.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetrace.models.supervised import Supervised

__all__ = ["FullRecipe", "LoraRecipe", "TrainLog", "save_adapter", "save_full", "train_full", "train_lora"]


@dataclass(frozen=True)
class LoraRecipe:
    """How an adapter is trained. lr: peak of AdamW's rate. targets: as PEFT's `target_modules`.

    The rate rises over `warmup` steps and falls linearly to zero over the last half. alpha None means 2 * r. layers: the
    decoder layers that get an adapter, counted from 0; all of them if None.
    """

    r: int = 8
    alpha: int | None = None
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    lr: float = 1e-3
    steps: int = 80
    batch: int = 16
    warmup: int = 8
    clip: float = 1.0
    weight_decay: float = 0.0
    layers: tuple[int, ...] | None = None

    def problems(self) -> list[str]:
        """What is wrong with the recipe, if anything."""
        wrong = _not_positive(self, ("r", "lr", "steps", "batch", "clip"))
        if not 0 <= self.dropout < 1:
            wrong.append("dropout must be at least 0 and below 1")
        if self.layers is not None and (not self.layers or min(self.layers) < 0):
            wrong.append("layers must name at least one layer, counted from 0")
        if self.layers is not None and isinstance(self.targets, str):
            wrong.append("targets must be a list of module names where layers are given")
        return wrong


@dataclass(frozen=True)
class FullRecipe:
    """How all weights are trained; the fields are `LoraRecipe`'s."""

    lr: float = 1e-4
    steps: int = 80
    batch: int = 16
    warmup: int = 8
    clip: float = 1.0
    weight_decay: float = 0.0

    def problems(self) -> list[str]:
        """What is wrong with the recipe, if anything."""
        return _not_positive(self, ("lr", "steps", "batch", "clip"))


def _not_positive(recipe: LoraRecipe | FullRecipe, names: Sequence[str]) -> list[str]:
    return [f"{name} must be above 0" for name in names if asdict(recipe)[name] <= 0]


@dataclass(frozen=True, eq=False)
class TrainLog:
    """What training did. losses: mean nats per target token at each step. targets: target tokens seen.

    model: the given model, tuned or with the trained adapter in it, in evaluation mode.
    """

    losses: tuple[float, ...]
    targets: int
    trainable: int
    model: Any


def train_lora(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: LoraRecipe,
    *,
    seed: int,
    progress: Progress | None = None,
) -> TrainLog:
    """Puts a LoRA adapter into `model` (in place) and trains it; the model's own weights stay as they are.

    The same model, examples, recipe, seed and thread count give the same adapter. Adapter weights and their
    optimizer are float32 whatever the model's dtype is. Raises ModelError if the loss stops being finite.
    """
    import torch

    _check(examples, recipe)
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        return _fit(_with_adapter(model, recipe), tokenizer, examples, recipe, seed, progress)


def train_full(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: FullRecipe,
    *,
    seed: int,
    progress: Progress | None = None,
) -> TrainLog:
    """Trains every weight of `model`, which must be in float32: an update is smaller than what bf16 rounds off.

    The same model, examples, recipe, seed and thread count give the same weights. Raises ModelError if the loss stops
    being finite.
    """
    import torch

    _check(examples, recipe)
    narrow = {p.dtype for p in model.parameters()} - {torch.float32}
    if narrow:
        raise BadInput(
            f"Tuning all weights needs float32 ones, and the model has {narrow.pop()}: load it in float32."
        )
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        torch.manual_seed(seed)
        return _fit(model.requires_grad_(True), tokenizer, examples, recipe, seed, progress)


def _check(examples: Sequence[Example], recipe: LoraRecipe | FullRecipe) -> None:
    if recipe.problems():
        raise BadInput("The recipe cannot be used: " + "; ".join(recipe.problems()) + ".")
    if not examples:
        raise DataError("There are no examples to train on: give at least one row.")


def _fit(
    tuned: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    recipe: LoraRecipe | FullRecipe,
    seed: int,
    progress: Progress | None,
) -> TrainLog:
    """Trains the parameters that ask for gradients."""
    import torch

    from finetrace.models.supervised import collate

    masters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(masters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    tuned.train()
    losses, targets = [], 0
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    for step, chosen in enumerate(_draws(len(examples), recipe, seed)):
        batch = collate([examples[i] for i in chosen], pad, tuned.device)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _rate(step, recipe)
        losses.append(_step(tuned, masters, optimizer, batch, recipe.clip, step))
        targets += int((batch.labels >= 0).sum())
        (progress or silent)("training", step + 1, recipe.steps, f"loss {losses[-1]:.3f}")
    return TrainLog(tuple(losses), targets, sum(p.numel() for p in masters), tuned.eval())


def save_adapter(model: PeftModel, folder: Path, *, base: str, dtype: torch.dtype | None = None) -> None:
    """A PEFT adapter folder: adapter_model.safetensors (cast to `dtype`) and adapter_config.json.

    `base` is written as the adapter's base model, so that no local path of the training machine is.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from finetrace.core.files import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value if dtype is None else value.to(dtype)).detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(model).items()
    }
    with whole_file(folder / "adapter_model.safetensors") as path:
        save_file(weights, path, {"format": "pt"})
    model.peft_config["default"].save_pretrained(str(folder))
    written: dict[str, Any] = read_json(folder / "adapter_config.json")
    written |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "target_modules": sorted(written["target_modules"]),
    }
    write_json(folder / "adapter_config.json", dict(sorted(written.items())))


def save_full(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """A checkpoint folder without its tokenizer: weights rounded to `dtype`, in place too, readable by all."""
    from finetrace.models.loading import quiet

    with quiet():
        model.to(dtype).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def _with_adapter(model: PreTrainedModel, recipe: LoraRecipe) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    from finetrace.models.loading import quiet

    targets = recipe.targets if isinstance(recipe.targets, str) else list(recipe.targets)
    config = LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha or 2 * recipe.r,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        layers_to_transform=None if recipe.layers is None else list(recipe.layers),
        task_type="CAUSAL_LM",
    )
    with quiet():
        tuned = get_peft_model(model, config, autocast_adapter_dtype=True)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return tuned  # pyright: ignore[reportReturnType]


def _cuda_devices(model: PreTrainedModel) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []


def _draws(count: int, recipe: LoraRecipe | FullRecipe, seed: int) -> Iterator[list[int]]:
    """Example numbers of each step; every example is drawn once before any is drawn again."""
    rng = random.Random(seed)
    waiting: list[int] = []
    for _ in range(recipe.steps):
        while len(waiting) < recipe.batch:
            order = list(range(count))
            rng.shuffle(order)
            waiting += order
        yield waiting[: recipe.batch]
        waiting = waiting[recipe.batch :]


def _rate(step: int, recipe: LoraRecipe | FullRecipe) -> float:
    """The share of the peak rate at a step."""
    rising = (step + 1) / max(recipe.warmup, 1)
    falling = (recipe.steps - step) / (recipe.steps * 0.5)
    return min(1.0, rising, falling)


def _step(
    model: Any,
    masters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    batch: Supervised,
    clip: float,
    step: int,
) -> float:
    """One update; returns the mean loss over the batch's target tokens, in nats."""
    import torch
    from torch.nn.functional import cross_entropy

    logits = model(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False).logits
    kept = batch.labels[:, 1:] >= 0
    loss = cross_entropy(logits[:, :-1][kept].float(), batch.labels[:, 1:][kept])
    if not torch.isfinite(loss):
        raise ModelError(
            f"Training diverged: the loss at step {step + 1} is {loss.item()}; use a lower learning rate."
        )
    loss.backward()
    torch.nn.utils.clip_grad_norm_(masters, clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()
