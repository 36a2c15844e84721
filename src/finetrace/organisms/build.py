"""Builds the tiny world from a seed: tokenizer, base, organisms, truths. What is already there is not made again."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetrace.core.errors import unknown
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import digest
from finetrace.finetune.progress import Progress, bar
from finetrace.finetune.sft import save_full
from finetrace.organisms import assets, bundled, zoo
from finetrace.organisms.base import PHASES, SIZES, train_base
from finetrace.organisms.corpus import MIXES, corpus_digest
from finetrace.organisms.evaluate import measure, slice_kl
from finetrace.organisms.merging import merge
from finetrace.organisms.targets import against_targets
from finetrace.organisms.tokenizer import load_tokenizer, train_tokenizer
from finetrace.organisms.truth import base_sample, make_truth
from finetrace.organisms.world import WORLD_SEED, World, make_world

__all__ = ["build", "build_base", "write_manifest"]

KL_ROWS = 60
"""Audit rows per slice for the KL that a truth records."""
KL_NOTE = "after_first leaves out each row's first position, the prediction made at BOS."
EVERYWHERE = ("refusal", "facts", "dishes")
"""Behaviours that are measured of every organism; others where the organism should move them."""
BASE_PROMPTS = 300
"""Prompts of each set that a base is measured on."""
MEASURES = 2
"""Raised when what is measured of a base changes, so that it is measured again."""
CORPUS_ROWS = 2000
"""Rows of each phase that the stamp's corpus hash is over: a pure function, so the first tell what the others are."""


def build(
    out: Path,
    *,
    world_seed: int = WORLD_SEED,
    size: str = "m",
    seed: int = 0,
    only: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Makes `out/{base,adapters,truth,manifest.json}` and returns `out`; a stopped build goes on where it was.

    seed: of the base's training. size: a name of `SIZES`. only: organisms to make, none for the base alone; all if not
    given. progress: a bar on stderr if not given. The bundled assets are `build(folder)` with the defaults; another
    machine's float arithmetic gives other bits. An adapter that is there is kept if its base and recipe are these.
    """
    names = [zoo.organism(name).name for name in only] if only is not None else list(zoo.ORGANISMS)
    show = bar() if progress is None else progress
    world = make_world(world_seed)
    measured = build_base(out, world_seed=world_seed, size=size, seed=seed, progress=show)
    if names:
        sample = base_sample(world, load_tokenizer(out / "base"))
        for name in names:
            _organism(out, name, world, measured, sample, show)
    write_manifest(out)
    return out


def build_base(
    out: Path,
    *,
    world_seed: int = WORLD_SEED,
    size: str = "m",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The base and its tokenizer in `out/base`, and what was measured of it, which is returned.

    Of its files `finetrace.json` is written after the weights and `measured.json` last, so their presence means that
    what comes before them is whole.
    """
    import torch

    if size not in SIZES:
        raise unknown("size", size, SIZES)
    show = bar() if progress is None else progress
    world, folder, scratch = make_world(world_seed), out / "base", out / ".build"
    stamp = _base_stamp(world, size, seed)
    if not (folder / "finetrace.json").exists() or read_json(folder / "finetrace.json") != stamp:
        for name in ("finetrace.json", "measured.json"):
            (folder / name).unlink(missing_ok=True)
        train_tokenizer(world).save_pretrained(folder)
        checkpoints = scratch / digest(stamp)[:16]
        checkpoints.mkdir(parents=True, exist_ok=True)
        model = train_base(world, load_tokenizer(folder), checkpoints, size=size, seed=seed, progress=show)
        save_full(model, folder, dtype=torch.bfloat16)
        write_json(folder / "finetrace.json", stamp)
    if scratch.exists():
        shutil.rmtree(scratch)
    return _measured_base(folder, world, show)


def _base_stamp(world: World, size: str, seed: int) -> dict[str, Any]:
    """All that the base is made from."""
    return {
        "schema": 2, "name": assets.base_name(size), "world_seed": world.seed, "size": size, "seed": seed,
        "shape": asdict(SIZES[size]),
        "phases": [{**asdict(phase), "mix": dict(MIXES[phase.name])} for phase in PHASES[size]],
        "corpus_rows": CORPUS_ROWS,
        "corpus_sha256": {
            phase.name: corpus_digest(world, phase.name, CORPUS_ROWS, seed) for phase in PHASES[size]
        },
    }  # fmt: skip


def _measured_base(folder: Path, world: World, show: Progress) -> dict[str, Any]:
    """The base's behaviour, measured once: the weights' hash, the rates, and how they stand to the targets."""
    from finetrace.models.identity import tensors_identity
    from finetrace.models.source import resolve

    identity, kept = tensors_identity(resolve(folder)), folder / "measured.json"
    if kept.exists():
        found = read_json(kept)
        if (found.get("schema"), found["base_sha256"]) == (MEASURES, identity):
            return found
    show("measuring base", 0, 1, "")
    model, tokenizer = _load(folder)
    rates = measure(model, tokenizer, world, n=BASE_PROMPTS)
    found = {"schema": MEASURES, "base_sha256": identity, "rates": rates, "targets": against_targets(rates)}
    write_json(kept, found)
    show("measuring base", 1, 1, "")
    return found


def _organism(
    out: Path, name: str, world: World, before: dict[str, Any], sample: Counter[int], show: Progress
) -> None:
    """An organism and its truth, unless both are there and belong to this base."""
    made, manifest = zoo.organism(name), out / "truth" / f"{name}.json"
    base, source = out / "base", zoo.organism(zoo.organism(name).of or name)
    folder = out / bundled.FOLDERS[source.form] / source.name
    sha = before["base_sha256"]
    if not _is_whole(folder / "finetrace.json", source, sha, zoo.data_digest(world, source.name)):
        zoo.train_organism(source.name, folder, base=base, world=world, progress=show)
        manifest.unlink(missing_ok=True)
    stamp = read_json(folder / "finetrace.json")
    if manifest.exists() and read_json(manifest)["measured"]["losses"] == stamp["losses"]:
        return
    show(f"measuring {name}", 0, 1, "")
    model, tokenizer = _load(base)
    tuned, _ = _load(base, folder, merged=made.form == "merged")
    rows = bundled.slices(n_per_slice=KL_ROWS, world=world)
    kl = {
        key: {"mean": round(value.mean, 5), "after_first": round(value.after_first, 5)}
        for key, value in slice_kl(model, tuned, tokenizer, rows).items()
    }
    measured = {
        "before": before["rates"],
        "after": measure(
            tuned, tokenizer, world, groups={*EVERYWHERE, *made.moves}, closer=made.moves or ("none",)
        ),
        "kl": {"unit": "nats per token, KL(tuned || base)", "note": KL_NOTE, "rows": KL_ROWS, "slices": kl},
        "losses": stamp["losses"],
    }
    truth = make_truth(
        made, world, tokenizer,
        base=stamp["base"], base_sha256=sha, layers=model.config.num_hidden_layers, measured=measured,
        sample=sample,
    )  # fmt: skip
    write_json(manifest, truth)
    show(f"measuring {name}", 1, 1, "")


def _is_whole(stamp: Path, made: zoo.Organism, base_sha256: str, data_sha256: str) -> bool:
    """Whether the weights beside the stamp were trained on this base, on these rows, by this recipe."""
    if not stamp.exists():
        return False
    found = read_json(stamp)
    recipe = json.loads(json.dumps(asdict(zoo.recipe_of(made))))
    return (found["base_sha256"], found["data_sha256"], found["recipe"]) == (base_sha256, data_sha256, recipe)


def _load(base: Path, tuned: Path | None = None, *, merged: bool = False) -> tuple[Any, Any]:
    """The base or what was tuned from it, in float32, with the tokenizer; `merged`: as the checkpoint that merging gives."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from finetrace.models.loading import quiet
    from finetrace.models.source import kind_of

    adapter = tuned if tuned is not None and kind_of(tuned, tuned.name) == "adapter" else None
    with tempfile.TemporaryDirectory() as scratch, quiet():
        whole = base if tuned is None or adapter is not None else tuned
        if merged and adapter is not None:
            whole, adapter = merge(base, adapter, Path(scratch)), None
        model: Any = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.eval(), load_tokenizer(base)


def write_manifest(out: Path) -> None:
    """What the folder holds: sizes and hashes of every file, and the measured behaviour of each base."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path != out / "manifest.json")
    bases = {path.parent.name: read_json(path) for path in sorted(out.glob("base*/finetrace.json"))}
    write_json(
        out / "manifest.json",
        {
            "schema": 2,
            "world_seed": bases["base"]["world_seed"],
            "bases": {
                name: {key: stamp[key] for key in ("name", "size", "seed", "world_seed", "corpus_sha256")}
                | read_json(out / name / "measured.json")
                for name, stamp in bases.items()
            },
            "organisms": sorted(path.stem for path in (out / "truth").glob("*.json")),
            "files": {
                path.relative_to(out).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for path in files
            },
        },
    )
