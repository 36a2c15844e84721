"""The case `pair`: base and tuned trunk on one batch, from two whole models or from one with an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.case import Arm, Case, Preset, Work
from benchmarks.floor import products
from finetrace.models import open_pair


def case(preset: Preset, dtype: torch.dtype, folder: Path) -> Case:
    tokens = preset.batch * preset.length
    flop = 2 * preset.trunk_flop(tokens)
    one = _bytes(folder / "base")
    shapes = [(tokens, i, o) for _ in range(2 * preset.layers) for i, o in preset.block_shapes()]
    arms = {
        "peer": Arm(lambda: _two(preset, dtype, folder), flop, {"weights": one + _bytes(folder / "merged")}),
        "ours": Arm(
            lambda: _one(preset, dtype, folder, "tuned"), flop, {"weights": one + _bytes(folder / "tuned")}
        ),
        "ours_late": Arm(
            lambda: _one(preset, dtype, folder, "late"), flop, {"weights": one + _bytes(folder / "late")}
        ),
        "one_model": Arm(lambda: _single(preset, dtype, folder), flop // 2, {"weights": one}),
        "floor": Arm(lambda: products(shapes, dtype), flop),
    }
    return Case("pair", arms, "open", goal, ("ours", "ours_late", "one_model"))


def _batch(preset: Preset) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and attention [batch, pos], no padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, preset.vocab, (preset.batch, preset.length), generator=generator)
    return ids, torch.ones_like(ids)


@torch.inference_mode()
def _trunk(model: Any, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    return model.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state


def _two(preset: Preset, dtype: torch.dtype, folder: Path) -> Work:
    both, batch = [models.plain(folder / name, dtype) for name in ("base", "merged")], _batch(preset)
    return lambda: [_trunk(model, *batch) for model in both]


def _single(preset: Preset, dtype: torch.dtype, folder: Path) -> Work:
    model, batch = models.plain(folder / "base", dtype), _batch(preset)
    return lambda: _trunk(model, *batch)


def _one(preset: Preset, dtype: torch.dtype, folder: Path, adapter: str) -> Work:
    pair = open_pair(
        folder / "base", folder / adapter, dtype=str(dtype).removeprefix("torch."), device="cpu"
    ).load()
    batch = _batch(preset)
    return lambda: [pair.trunk(side, *batch) for side in ("base", "tuned")]


def _bytes(folder: Path) -> int:
    """Of the tensors that are stored there."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def goal(figures: Mapping[str, Any]) -> dict[str, Any]:
    """One model's memory; no slower than two models; faster where the first adapted layer is at half depth."""
    arms = figures["arms"]
    weights = {
        name: arms[name]["bytes"]["weights"] / arms["one_model"]["bytes"]["weights"]
        for name in ("peer", "ours")
    }
    held = {
        name: _ratio(arms[name]["memory"]["held"], arms["one_model"]["memory"]["held"])
        for name in ("peer", "ours")
    }
    in_time = arms["ours"]["ratio"]["median"] >= 0.95
    late = arms["ours_late"]["ratio"]["median"] >= 1.3
    return {
        "name": "LoRA pair in memory: 1.0 times one model (peer 2); time >= 0.95; >= 1.3 when the first adapted layer "
        "is at half depth",
        "measured": {
            "weights_to_one_model": {name: round(value, 3) for name, value in weights.items()},
            "held_to_one_model": held,
            "time": arms["ours"]["ratio"],
            "time_late": arms["ours_late"]["ratio"],
        },
        "reached": weights["ours"] <= 1.05 and in_time and late,
        "reached_memory": weights["ours"] <= 1.05,
        "reached_time": in_time,
        "reached_late": late,
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else round(one / other, 3)
