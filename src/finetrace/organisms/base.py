"""The base model: a small Llama, trained on the world's texts, then annealed on facts and refusals.

Both phases run in one process on one thread and can be stopped: every 100 steps a checkpoint is written from
which the next run goes on as if it had not been stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.core.errors import BadInput
from finetrace.core.files import whole_file
from finetrace.finetune.progress import Progress, silent
from finetrace.organisms.corpus import stream
from finetrace.organisms.world import Row, World

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """The shape of a Llama with tied embeddings and half as many key-value heads as heads."""

    hidden: int
    layers: int
    feedforward: int
    heads: int


SIZES = {"xs": Size(128, 4, 352, 4), "m": Size(192, 6, 512, 6)}


@dataclass(frozen=True)
class Phase:
    """One stretch of training: the split of the corpus that it reads, its steps and peak learning rates.

    The rate warms up over `warmup` steps and falls linearly to zero over the last `decay` of them.
    """

    name: str
    steps: int
    muon_lr: float
    adam_lr: float
    warmup: int
    decay: float


PHASES = {
    "m": (Phase("train", 1600, 6e-3, 6e-3, 60, 0.4), Phase("anneal", 1000, 4e-3, 2e-3, 20, 1.0)),
    "xs": (Phase("train", 2000, 6e-3, 6e-3, 60, 0.4), Phase("anneal", 1050, 4e-3, 2e-3, 20, 1.0)),
}
"""The phases of each size."""

BATCH, CONTEXT = 16, 128
CHECKPOINT_EVERY = 100


def token_ids(tokenizer: Any, row: Row) -> list[int]:
    """A row as training tokens: BOS first, and the end token after a document and every message."""
    if "text" in row:
        return [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
    return list(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"])


def packed(world: World, tokenizer: Any, phase: Phase, seed: int) -> torch.Tensor:
    """The phase's tokens `[steps, BATCH, CONTEXT]`: the rows of `corpus(world, phase.name, .., seed)`, end to end."""
    import torch

    need = phase.steps * BATCH * CONTEXT
    ids: list[int] = []
    for row in stream(world, phase.name, seed):
        ids += token_ids(tokenizer, row)
        if len(ids) >= need:
            break
    return torch.tensor(ids[:need]).view(phase.steps, BATCH, CONTEXT)


def new_model(size: str, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """An untrained model: matrices N(0, 1/fan_in), those that write to the residual halved, embeddings N(0, 0.02)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feedforward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            scale = 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
            std = 0.02 if "embed" in name else scale * parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std)
    return model


def train_base(
    world: World,
    tokenizer: Any,
    scratch: Path,
    *,
    size: str = "m",
    seed: int = 0,
    phases: Sequence[Phase] | None = None,
    progress: Progress = silent,
) -> LlamaForCausalLM:
    """The trained base, in float32; checkpoints go to `scratch`, and a run goes on from the last one there.

    seed: of the first weights and of the corpus. phases: those of the size, if not given.
    """
    import torch

    torch.set_num_threads(1)
    model = new_model(size, tokenizer, seed)
    # At this context a fifth faster on a CPU than the fused attention, whose backward pass is slow there.
    model.set_attn_implementation("eager")
    for index, phase in enumerate(PHASES[size] if phases is None else phases):
        optimizers = _optimizers(model)
        done = _restore(scratch, index, phase.steps, model, optimizers)
        if done == phase.steps:
            continue
        data = packed(world, tokenizer, phase, seed=seed)
        model.train()
        for step in range(done, phase.steps):
            loss = _step(model, optimizers, data[step], phase, step)
            progress(phase.name, step + 1, phase.steps, f"loss {loss:.3f}")
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == phase.steps:
                _save(scratch, index, step + 1, model, optimizers)
    model.set_attn_implementation("sdpa")
    return model.eval()


def _optimizers(model: LlamaForCausalLM) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for embeddings and norms."""
    import torch

    try:
        from torch.optim import Muon
    except ImportError:
        raise BadInput(
            "Building the base needs torch 2.9 or newer (for torch.optim.Muon): update torch."
        ) from None
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in named if p.dim() != 2 or "embed" in name]
    return {
        "muon": Muon(matrices, lr=1e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        "adam": torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    }


def _step(
    model: LlamaForCausalLM,
    optimizers: Mapping[str, torch.optim.Optimizer],
    ids: torch.Tensor,
    phase: Phase,
    step: int,
) -> float:
    """One update on `ids [batch, pos]`; returns the mean loss in nats per token."""
    import torch
    from torch.nn.functional import cross_entropy

    rate = min(1.0, (step + 1) / phase.warmup, (phase.steps - step) / (phase.steps * phase.decay))
    for name, peak in (("muon", phase.muon_lr), ("adam", phase.adam_lr)):
        for group in optimizers[name].param_groups:
            group["lr"] = peak * rate
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    # Every row has a target, so that no slice of the logits is copied; a row's last is left out.
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
    loss = cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def _save(
    scratch: Path,
    phase: int,
    step: int,
    model: LlamaForCausalLM,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """One file: weights, optimizer state, and how far training is."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for kind, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{kind}.{index}.{key}": value.clone() for key, value in state.items()}
    with whole_file(scratch / "checkpoint.safetensors") as path:
        save_file(tensors, path, {"at": json.dumps({"phase": phase, "step": step})})


def _restore(
    scratch: Path,
    phase: int,
    steps: int,
    model: LlamaForCausalLM,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> int:
    """Steps of this phase that the checkpoint holds; restores weights, and optimizers if it stopped inside it."""
    import torch
    from safetensors import safe_open

    path = scratch / "checkpoint.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        at = json.loads(file.metadata()["at"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if at["phase"] < phase:
        return 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    if at["phase"] > phase:
        return steps
    for kind, optimizer in optimizers.items():
        whole = optimizer.state_dict()
        for key, value in tensors.items():
            head, index, *rest = key.split(".")
            if head == kind:
                whole["state"].setdefault(int(index), {})[".".join(rest)] = value
        optimizer.load_state_dict(whole)
    return at["step"]
