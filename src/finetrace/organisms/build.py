"""Builds the tiny world from a seed: tokenizer, base, organisms, truths. What is already there is not made again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetrace.core.errors import unknown
from finetrace.core.files import read_json, write_json
from finetrace.finetune.progress import Progress, bar
from finetrace.organisms import assets, bundled, zoo
from finetrace.organisms.base import PHASES, SIZES, train_base
from finetrace.organisms.evaluate import measure, slice_kl
from finetrace.organisms.tokenizer import load_tokenizer, train_tokenizer
from finetrace.organisms.truth import make_truth
from finetrace.organisms.world import World, make_world

__all__ = ["build"]

KL_ROWS = 60
"""Audit rows per slice for the KL that a truth records."""
KL_NOTE = "after_first leaves out each row's first position, the prediction made at BOS."


def build(
    out: Path,
    *,
    seed: int = 0,
    size: str = "m",
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes `out/{base,adapters,truth,manifest.json}` and returns `out`; a stopped build goes on where it was.

    seed: of the base's training. size: a name of `SIZES`. only: organisms to make; all if not given. progress: a
    bar on stderr if not given. The bundled assets are `build(folder)` with the defaults; another machine's float
    arithmetic gives other bits. An adapter that is there is kept if its base and recipe are these.
    About 20 minutes on one free core.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    names = [zoo.organism(name).name for name in only] if only is not None else list(zoo.ORGANISMS)
    show = bar() if progress is None else progress
    world = make_world()
    scratch = out / ".build"
    _base(out, scratch, world, size, seed, show)
    before = _measured_base(out, scratch, world, show)
    for name in names:
        _organism(out, name, world, before, show)
    shutil.rmtree(scratch)
    _manifest(out, world, size, seed, before)
    return out


def _base(out: Path, scratch: Path, world: World, size: str, seed: int, show: Progress) -> None:
    """The base and its tokenizer; its `finetrace.json` is written last, so its presence means they are whole."""
    import torch

    folder = out / "base"
    stamp = {
        "schema": 1, "name": assets.BASE_NAME, "world_seed": world.seed, "size": size, "seed": seed,
        "shape": asdict(SIZES[size]),
        "phases": [{**asdict(phase), "mix": dict(phase.mix)} for phase in PHASES],
    }  # fmt: skip
    scratch.mkdir(parents=True, exist_ok=True)
    if (folder / "finetrace.json").exists() and read_json(folder / "finetrace.json") == stamp:
        return
    tokenizer = train_tokenizer(world)
    tokenizer.save_pretrained(folder)
    model = train_base(
        world, load_tokenizer(folder), scratch / f"{size}-{seed}", size=size, seed=seed, progress=show
    )
    model.to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    write_json(folder / "finetrace.json", stamp)


def _measured_base(out: Path, scratch: Path, world: World, show: Progress) -> dict[str, Any]:
    """The base's behaviour, measured once."""
    from finetrace.models.identity import tensors_identity
    from finetrace.models.source import resolve

    identity = tensors_identity(resolve(out / "base"))
    kept = scratch / "before.json"
    manifest = out / "manifest.json"
    for path in (kept, manifest):
        if path.exists() and (found := read_json(path)).get("base_sha256") == identity:
            return {"base_sha256": identity, "rates": found["rates"]}
    show("measuring base", 0, 1, "")
    model, tokenizer = _load(out / "base")
    found = {"base_sha256": identity, "rates": measure(model, tokenizer, world)}
    write_json(kept, found)
    show("measuring base", 1, 1, "")
    return found


def _organism(out: Path, name: str, world: World, before: dict[str, Any], show: Progress) -> None:
    """An adapter and its truth, unless both are there and belong to this base."""
    from peft import PeftModel

    folder, manifest = out / "adapters" / name, out / "truth" / f"{name}.json"
    sha = before["base_sha256"]
    if not _is_whole(folder / "finetrace.json", sha, zoo.data_digest(world, name)):
        zoo.train_organism(name, folder, base=out / "base", progress=show)
        manifest.unlink(missing_ok=True)
    if manifest.exists():
        return
    show(f"measuring {name}", 0, 1, "")
    base, tokenizer = _load(out / "base")
    other, _ = _load(out / "base")
    tuned = PeftModel.from_pretrained(other, folder).merge_and_unload().eval()  # pyright: ignore
    rows = bundled.slices(n_per_slice=KL_ROWS)
    kl = {
        key: {"mean": round(value.mean, 5), "after_first": round(value.after_first, 5)}
        for key, value in slice_kl(base, tuned, tokenizer, rows).items()
    }
    measured = {
        "before": before["rates"],
        "after": measure(tuned, tokenizer, world, n=100),
        "kl": {"unit": "nats per token, KL(tuned || base)", "note": KL_NOTE, "rows": KL_ROWS, "slices": kl},
        "losses": read_json(folder / "finetrace.json")["losses"],
    }
    layers = base.config.num_hidden_layers
    write_json(
        manifest,
        make_truth(zoo.organism(name), world, tokenizer, base_sha256=sha, layers=layers, measured=measured),
    )
    show(f"measuring {name}", 1, 1, "")


def _is_whole(stamp: Path, base_sha256: str, data_sha256: str) -> bool:
    """Whether the adapter beside the stamp was trained on this base, on these rows, by this recipe."""
    if not stamp.exists():
        return False
    found = read_json(stamp)
    made_from = (found["base_sha256"], found.get("data_sha256"), found["recipe"])
    return made_from == (base_sha256, data_sha256, asdict(zoo.RECIPE))


def _load(folder: Path) -> tuple[Any, Any]:
    """The base in float32, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from finetrace.models.loading import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), load_tokenizer(folder)


def _manifest(out: Path, world: World, size: str, seed: int, before: dict[str, Any]) -> None:
    """What the folder holds: sizes and hashes of every file, and the base's measured behaviour."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path != out / "manifest.json")
    write_json(
        out / "manifest.json",
        {
            "schema": 1,
            "name": assets.BASE_NAME,
            "world_seed": world.seed,
            "size": size,
            "seed": seed,
            "organisms": sorted(path.name for path in (out / "adapters").glob("*")),
            "base_sha256": before["base_sha256"],
            "rates": before["rates"],
            "files": {
                path.relative_to(out).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for path in files
            },
        },
    )
