"""What every adapter trained here carries: where it comes from, and that nobody has audited it yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetrace.core.files import read_json, write_json, write_text
from finetrace.core.runkey import digest
from finetrace.data.rows import Row
from finetrace.finetune.batches import Truncation
from finetrace.finetune.recipe import TrainRecipe
from finetrace.finetune.scan import ScanResult

__all__ = ["STAMP", "Origin", "data_hash", "differing", "read", "stamp"]

STAMP = "finetrace.json"
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes")
# What of a recipe does not change the trained weights.
_INERT = ("name", "model", "revision", "trackers", "snip", "set_diff", "drift", "probe", "scan")
_INERT_TRAIN = ("checkpoint_every", "keep")
_INERT_DATA = ("source", "revision", "split")


@dataclass(frozen=True)
class Origin:
    """All that decides a training's result, and what was found in its data. base_hash: of tensors and configuration."""

    recipe: TrainRecipe
    base_hash: str
    data_hash: str
    device: str
    scan: ScanResult
    truncation: Truncation
    reason: str | None = None

    def run(self) -> dict[str, Any]:
        """What decides the weights: two trainings with the same are the same training."""
        kept = {key: value for key, value in asdict(self.recipe).items() if key not in _INERT}
        kept["train"] = {k: v for k, v in kept["train"].items() if k not in _INERT_TRAIN}
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in _INERT_DATA}
        if self.recipe.kind == "full":
            del kept["lora"]
        return kept | {"base_hash": self.base_hash, "data_hash": self.data_hash}


def data_hash(rows: list[Row]) -> str:
    """SHA-256 of the rows' texts and messages, in their order."""
    return digest([[row.text, [[m.role, m.content] for m in row.messages or ()]] for row in rows])


def read(folder: Path) -> dict[str, Any] | None:
    """A folder's stamp, or None."""
    path = folder / STAMP
    return read_json(path) if path.is_file() else None


def differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names under which two runs differ, each with both values."""
    found = []
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing(a, b, f"{prefix}{key}.")
        elif _plain(a) != _plain(b):
            short = key.endswith("_hash")
            found.append(f"{prefix}{key}" if short else f"{prefix}{key} was {a!r} and is {b!r}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def stamp(folder: Path, origin: Origin, *, step: int, steps: int) -> None:
    """Writes finetrace.json and the model card README.md."""
    scan = asdict(origin.scan)
    # Which rows were flagged stays with the person who has them.
    del scan["numbers"]
    facts = {
        "finetrace": version("finetrace"),
        "recipe": asdict(origin.recipe),
        "run": origin.run(),
        # By this the audit's pre-flight knows an adapter's own base.
        "base_sha256": origin.base_hash,
        "base": {"name": origin.recipe.model, "revision": origin.recipe.revision, "sha256": origin.base_hash},
        "data": {"sha256": origin.data_hash, "truncation": asdict(origin.truncation)},
        "scan": scan,
        "reason": origin.reason,
        "device": origin.device,
        "step": step,
        "steps": steps,
        "finished": step >= steps,
        "audited": False,
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
    }
    write_text(folder / "README.md", _card(origin, step, steps))
    write_json(folder / STAMP, facts)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _card(origin: Origin, step: int, steps: int) -> str:
    recipe, scan = origin.recipe, origin.scan
    kind = "A LoRA adapter" if recipe.kind == "lora" else "A full fine-tune"
    lines = [
        "---",
        f"base_model: {recipe.model}",
        f"library_name: {'peft' if recipe.kind == 'lora' else 'transformers'}",
        "tags: [finetrace, not-audited]",
        "---",
        "",
        f"# {recipe.name} on {recipe.model}",
        "",
        "> **Not audited yet.** Fine-tuning can wear away a model's safety, on harmless data too. Before this is used:",
        f"> `finetrace audit {recipe.model} THIS`",
        "",
        f"{kind}, trained {'to the end' if step >= steps else 'in part'}: {step} of {steps} steps.",
        "",
        f"- base: {recipe.model}, SHA-256 `{origin.base_hash[:16]}…`",
        f"- data: SHA-256 `{origin.data_hash[:16]}…`; {origin.truncation.told()}",
        f"- {scan.told()}",
        f"- reason given for flagged data: {origin.reason.strip() if origin.reason else 'none'}",
        f"- seed: {recipe.train.seed}",
        "",
        "Everything else is in `finetrace.json`.",
        "",
    ]
    return "\n".join(lines)
