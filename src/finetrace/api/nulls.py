"""`--null train`: harmless fine-tunes of the user's own base, made here, so that a verdict has something to stand on.

They are LoRA adapters of the tuned model's own shape, trained on neutral samples. Their size is arbitrary (steps and rate
are ours, not the user's), so the verdict is about them at the pair's dose; see `finetrace.api.dose`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetrace.api.names import is_bundled
from finetrace.api.opening import open_request
from finetrace.api.request import TRAIN, Request
from finetrace.api.watch import Watch
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import digest
from finetrace.data import Row, bundled_rows, read_rows
from finetrace.finetune.sft import LoraRecipe
from finetrace.models import Pair

COUNT = 4
STEPS, BATCH = 60, 8
# The usual rate for LoRA; models as small as the bundled one learn nothing from it in so few steps.
RATE, SMALL_RATE, SMALL = 2e-4, 1e-3, 512
STAMP = "finetrace.json"


def with_trained_nulls(request: Request, watch: Watch) -> Request:
    """The request with `train` replaced by the folders of nulls trained now, or before in the same `out`."""
    if request.nulls != (TRAIN,):
        return request
    pair = open_request(replace(request, nulls=()))
    recipe = recipe_for(pair)
    folders = trained_folders(request, pair)
    for number, folder in enumerate(folders, 1):
        stamp = {"base_sha256": pair.identity("base"), "recipe": asdict(recipe), "seed": number}
        if not _is_whole(folder, stamp):
            _train(request, pair, recipe, folder, stamp, watch)
    pair.release()
    return replace(request, nulls=tuple(str(folder) for folder in folders))


def trained_folders(request: Request, pair: Pair) -> list[Path]:
    """Where the nulls that are made for the pair lie: those of an audit in its own folder, those of runs together, by their
    base and recipe, so that fine-tunes of one shape are read against the same ones."""
    place = request.out / "nulls"
    if request.shelved is not None:
        place /= digest({"base": pair.identity("base"), "recipe": asdict(recipe_for(pair))})[:12]
    return [place / f"trained_{number}" for number in range(1, COUNT + 1)]


def recipe_for(pair: Pair) -> LoraRecipe:
    """LoRA of the tuned adapter's rank and targets; rank 8 on every linear layer for a full checkpoint."""
    rate = SMALL_RATE if pair.d_model < SMALL else RATE
    shape = LoraRecipe(steps=STEPS, batch=BATCH, lr=rate, warmup=6)
    config = pair.adapter_config("tuned")
    if config is None:
        return shape
    targets = config["target_modules"]
    targets = targets if isinstance(targets, str) else tuple(sorted(t for t in targets if t != "lm_head"))
    return replace(shape, r=config["r"], alpha=config["lora_alpha"], targets=targets or "all-linear")


def training_rows(request: Request) -> Sequence[Row]:
    """Neutral samples that the audit does not read: the odd ones. The audit reads the even ones when it has no other data."""
    if is_bundled(request.base):
        from finetrace.organisms import bundled

        rows = read_rows(bundled.slices(seed=request.seed + 1))
        return [row for row in rows if row.slice in ("text", "chat")]
    return bundled_rows()[1::2]


def _is_whole(folder: Path, stamp: dict[str, Any]) -> bool:
    path = folder / STAMP
    return path.exists() and read_json(path) == _plain(stamp)


def _plain(stamp: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists."""
    recipe = {k: list(v) if isinstance(v, tuple) else v for k, v in stamp["recipe"].items()}
    return stamp | {"recipe": recipe}


def _train(
    request: Request, pair: Pair, recipe: LoraRecipe, folder: Path, stamp: dict[str, Any], watch: Watch
) -> None:
    """One null; its stamp is written last, so its presence means that the adapter is whole."""
    from transformers import AutoModelForCausalLM

    from finetrace.data.examples import make_examples
    from finetrace.finetune.sft import save_adapter, train_lora
    from finetrace.models.loading import quiet

    base = pair.source("base")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            base.folder,
            dtype=pair.dtype,
            device_map={"": pair.device},
            use_safetensors=True,
            trust_remote_code=request.trust_remote_code,
        )
    examples = make_examples(training_rows(request), pair.tokenizer, max_tokens=request.max_tokens or 512)
    watch.begin(f"Training the null {folder.name}", recipe.steps, unit="steps")
    log = train_lora(
        model, pair.tokenizer, examples, recipe, seed=stamp["seed"], progress=lambda *_: watch.advance(1)
    )
    watch.end()
    save_adapter(log.model, folder, base=base.name)
    write_json(folder / STAMP, _plain(stamp))
