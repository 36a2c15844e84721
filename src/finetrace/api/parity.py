"""Is what was audited what is served? A served model's answers beside the local pair's, and the precision of the base that
an adapter was trained on beside that of the base it is read on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetrace.api.request import Request
from finetrace.core.card import Needs
from finetrace.core.findings import Check, Findings
from finetrace.data.prompts import Prompt
from finetrace.engine import Answers
from finetrace.models import Pair
from finetrace.models.preflight import RECORD

__all__ = ["PROMPTS", "SAID_TO_BE", "problems", "quantised_base", "served", "with_parity"]

PROMPTS = 64
"""So many prompts are put to a served model, spread evenly over all."""

SAID_TO_BE = ("none", "nf4", "int4", "int8", "fp8", "gptq", "awq", "other")
"""What --trained-quantization takes: how the base's weights were held while the adapter was trained."""

# How published bases say in their names that their weights are quantised.
_IN_NAMES = (
    (r"gptq", "gptq"), (r"awq", "awq"), (r"bnb-4bit|nf4", "nf4"), (r"4-?bit|int4|w4a16", "int4"),
    (r"8-?bit|int8|w8a8", "int8"), (r"fp8|float8", "fp8"), (r"gguf|exl2|hqq|aqlm|quip", "other"),
)  # fmt: skip


def problems(request: Request, needs: Sequence[Needs]) -> list[str]:
    """What is wrong with --served and --trained-quantization, seen without a model. needs: of the methods."""
    found: list[str] = []
    said = request.trained_quantization
    if said is not None and said not in SAID_TO_BE:
        found.append(f"--trained-quantization is '{said}'; it is one of {', '.join(SAID_TO_BE)}.")
    if request.served is None:
        return found
    from finetrace.api.judging import served_problems

    found += served_problems(request.served)
    if request.tuned is None:
        found.append("--served compares answers with the fine-tune's: name one.")
    if not any(one.answers for one in needs):
        found.append("--served compares answers, and no method asks for any: add behaviour to --methods.")
    if request.written.temperature > 0 or request.written.samples > 1:
        found.append("--served compares greedy answers: leave out --temperature and --samples.")
    return found


def with_parity(findings: Findings, request: Request, pair: Pair, told: dict[str, Any] | None) -> Findings:
    """The findings with both checks in their pre-flight, and the figures of the served model in the protocol.

    told: what `served` gave."""
    checks = [check for check in (quantised_base(request, pair),) if check is not None]
    protocol = findings.protocol
    if told is not None:
        status = {"same": "ok", "close": "ok", "unseen": "note"}.get(told["word"], "warning")
        checks.append(Check("served model", status, f"{request.served}: {told['sentence']}"))
        protocol = protocol | {"served": {"model": request.served, **told}}
    return replace(findings, preflight=(*findings.preflight, *checks), protocol=protocol)


def served(request: Request, written: Answers | None) -> dict[str, Any] | None:
    """How the served model's greedy answers agree with the local pair's; None where none was named."""
    if request.served is None or written is None:
        return None
    from finetrace.api.judging import parity

    asked = Answers(
        written.pair,
        _spread(written.prompts),
        written.decoding,
        arms=(written.arms[written.main],),
        folder=request.shelf.aside(".answers"),
    )
    found = parity(request.served, asked, request.out / "runs" / ".judges")
    return {
        "word": found.word,
        "sentence": found.sentence,
        "prompts": found.exact.n,
        "failed": found.failed,
        "equal_answers": found.exact.value,
        "tokens_before_a_difference": found.tokens,
        "equal_to_the_base": found.base.value,
        "telling_prompts": found.base_telling.n,
        "equal_to_the_base_where_it_tells": found.base_telling.value,
    }


def _spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """At most PROMPTS, from the first to the last."""
    n = min(PROMPTS, len(prompts))
    return [prompts[i * len(prompts) // n] for i in range(n)]


def quantised_base(request: Request, pair: Pair) -> Check | None:
    """Was the adapter trained on a base of the precision that it is read on here? None for what is no adapter.

    An adapter learns on top of its base's rounding: on another base it does something else, mostly a little, and a gate
    that was passed on one is not passed on the other.
    """
    config = pair.adapter_config("tuned") if request.tuned is not None else None
    if config is None:
        return None
    name, here = "base in training", _here(request, pair)
    trained, source = _trained(request, pair, config)
    if trained is None:
        return Check(
            name,
            "ok",
            "No sign that the adapter was trained on a quantised base; --trained-quantization says it.",
        )
    if trained == here or (trained == "other" and here != "none"):
        return Check(name, "ok", f"{_said(trained)} in training ({source}) and here.")
    return Check(
        name,
        "warning",
        f"The adapter was trained on a base {_said(trained)} ({source}); here its base is {_said(here)}. Its effect on the one "
        "is not quite its effect on the other: audit it on the base that it is served on.",
    )


def _trained(request: Request, pair: Pair, config: dict[str, Any]) -> tuple[str | None, str]:
    """How the base was held in training, and who says so."""
    if request.trained_quantization is not None:
        return request.trained_quantization, "as you say"
    stamped = _stamped(pair)
    if stamped is not None:
        return stamped, f"its {RECORD}"
    named = str(config.get("base_model_name_or_path") or "").lower()
    for pattern, kind in _IN_NAMES:
        if re.search(pattern, named):
            return kind, "by the name of the base in its adapter_config.json"
    return None, ""


def _stamped(pair: Pair) -> str | None:
    """What our own training recorded."""
    from finetrace.core.files import read_json

    path = pair.source("tuned").folder / RECORD
    recorded = read_json(path) if path.is_file() else None
    recipe = recorded.get("recipe") if isinstance(recorded, dict) else None
    kind = recipe.get("quant") if isinstance(recipe, dict) else None
    return kind if isinstance(kind, str) else None


def _here(request: Request, pair: Pair) -> str:
    """How the base is held in this audit, in the words of SAID_TO_BE."""
    found = pair.config("base").to_dict().get("quantization_config") or {}
    method = str(found.get("quant_method", request.quantization or "none")).lower()
    if method == "bitsandbytes":
        return "int8" if found.get("load_in_8bit") else str(found.get("bnb_4bit_quant_type", "nf4"))
    return method if method in SAID_TO_BE else "other"


def _said(kind: str) -> str:
    return {"none": "not quantised", "other": "quantised"}.get(kind, f"quantised ({kind})")
