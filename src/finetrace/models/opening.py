"""Opening a pair: everything that can be checked before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetrace.core.errors import BadInput, ModelError
from finetrace.models import adapters, tokens
from finetrace.models.assembly import BASE, TUNED, Plan
from finetrace.models.files import float32_bytes, validate
from finetrace.models.idle import without_idle
from finetrace.models.pair import Pair
from finetrace.models.placement import DeviceMap, pick_dtype, places
from finetrace.models.source import Source, resolve


def open_pair(
    base: str | Path,
    tuned: str | Path | None,
    *,
    nulls: Mapping[str, str | Path] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: DeviceMap = (None, None),
    quantization: str | None = None,
    revision: str | None = None,
    tuned_revision: str | None = None,
    attn_implementation: str | None = None,
    tokenizer: str | Path | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> Pair:
    """Opens a pair: checks the form of every file now, loads weights on first use.

    base, tuned, nulls, tokenizer: local folders or hub ids (`org/repo`, `org/repo/subfolder`, either with `@revision`);
    tuned is an adapter, a full checkpoint, or None for the base against itself. tokenizer: of both sides. chat_template: a
    template, or a file that holds one. device_map: of base and tuned, a device, "auto" (the layers over all GPUs) or None
    (`device`); an adapter is where its base is, and full nulls are where tuned is.
    """
    if quantization is not None:
        raise ModelError(
            f"Quantised loading ('{quantization}') is not supported yet: leave quantization out."
        )
    first = resolve(base, revision=revision, code=trust_remote_code)
    if first.kind != "full":
        raise ModelError(
            f"The base {first.name} is an adapter: give the model it was trained on as the base."
        )
    others: dict[str, Source | None] = {
        TUNED: None if tuned is None else resolve(tuned, revision=tuned_revision, code=trust_remote_code)
    }
    for name, given in (nulls or {}).items():
        if name in (BASE, TUNED):
            raise BadInput(f"A null cannot be called '{name}'.")
        others[name] = resolve(given, code=trust_remote_code)
    sources = [first, *(source for source in others.values() if source is not None)]
    for source in sources:
        validate(source)
        if source.kind == "adapter":
            adapters.read_adapter_config(source)
    others = {side: source and without_idle(source, first) for side, source in others.items()}
    sources = [first, *(source for source in others.values() if source is not None)]
    chief = others[TUNED] or first
    where, beside = places(device, device_map, chief.name, "base" if others[TUNED] is None else chief.kind)
    full = [source for source in sources if source.kind == "full"]
    held = [(where if source is first else beside, float32_bytes(source)) for source in full]
    chosen = pick_dtype(dtype, held, tokens.own_dtype(first))
    return Pair(
        Plan(
            base=first,
            others=others,
            dtype=chosen,
            device=where.device,
            spread=where.spread,
            tuned=beside,
            attn_implementation=attn_implementation,
            tokenizer=None if tokenizer is None else tokens.tokenizer_folder(tokenizer),
            chat_template=tokens.read_template(chat_template),
            trust_remote_code=trust_remote_code,
        )
    )
