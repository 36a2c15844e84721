"""An audit from the request to the findings: check, open, pass, judge."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from finetrace.api import describe
from finetrace.api.calibration import Sets, sets_for
from finetrace.api.dose import dosed_contrasts
from finetrace.api.expect import expectations, unchanged
from finetrace.api.found import Found
from finetrace.api.maker import Maker, Opened
from finetrace.api.names import is_bundled
from finetrace.api.nulls import with_trained_nulls
from finetrace.api.opening import open_request
from finetrace.api.parity import served, with_parity
from finetrace.api.plan import TUNED, contrasts, items, null_names
from finetrace.api.prompts import arms_for, asked_facts, prompts_for
from finetrace.api.request import Chosen, Request
from finetrace.api.stored import states_for, stored_facts
from finetrace.api.verdicts import findings, worst
from finetrace.api.watch import Watch
from finetrace.core.errors import DataError
from finetrace.core.findings import Finding, Findings
from finetrace.data import Corpus, DataSource, Row, build_corpus, bundled_rows, read_rows
from finetrace.data.prompts import Prompt
from finetrace.engine import Answers
from finetrace.engine.backends import Writer
from finetrace.models import Pair, check_head, preflight
from finetrace.stats import overall
from finetrace.weights import effect, require_effect


def with_bundled_nulls(request: Request) -> Request:
    """On the bundled base six of the bundled nulls are read too, unless some were named; never the audited one itself."""
    if request.nulls or not is_bundled(request.base):
        return request
    from finetrace.organisms import bundled

    names = [f"tinyworld/{name}" for name in bundled.default_nulls()]
    return replace(request, nulls=tuple(name for name in names if name != request.tuned))


def open_all(
    request: Request,
    rows: Sequence[Row],
    pair: Pair | None,
    trained: bool,
    sets: Sets,
    prompts: Sequence[Prompt] = (),
    watch: Watch | None = None,
) -> Opened:
    """Loads both models and the nulls, checks that each does something, and tokenises the rows."""
    pair = pair or open_request(request)
    effects = {side: effect(pair, side) for side in pair.sides if side != "base"}
    for side, found in effects.items():
        if side != TUNED or not request.control:
            require_effect(found)
    check_head(pair)
    written = answers_for(request, pair, prompts, watch or Watch())
    return Opened(pair, effects, corpus_for(request, rows, pair), sets, _truth(request), trained, written)


def answers_for(request: Request, pair: Pair, prompts: Sequence[Prompt], watch: Watch) -> Answers | None:
    """Where the answers to the prompts are kept, or will be; None if nothing is asked."""
    if not prompts:
        return None
    return Answers(
        pair,
        prompts,
        request.written,
        arms=arms_for(request, pair, prompts, watch.tell),
        folder=request.shelf.aside(".answers"),
        tell=watch.tell,
        writer=_writer(request),
    )


def _writer(request: Request) -> Writer | None:
    """What writes the answers; None for the pair itself."""
    if request.backend == "transformers":
        return None
    import torch

    from finetrace.models.vllm_writer import Vllm

    count = torch.cuda.device_count()
    return Vllm(**({"tensor_parallel_size": count} if count > 1 and "auto" in request.device_map else {}))


def asked_for(request: Request, methods: Sequence[Chosen]) -> list[Prompt]:
    """The prompts, if some method asks for them."""
    return prompts_for(request) if any(chosen.needs.prompts for chosen in methods) else []


def corpus_for(request: Request, rows: Sequence[Row], pair: Pair) -> Corpus:
    return build_corpus(
        rows,
        pair.tokenizer,
        system=request.system,
        chat_template=request.chat_template,
        max_tokens=request.max_tokens,
        context=pair.max_positions,
        thinking=request.thinking,
    )


def rows_for(request: Request, held_out: bool = False) -> Sequence[Row]:
    """The user's rows; else the tiny world's own slices on its base; else the bundled neutral samples (every second one
    where the others trained the nulls)."""
    if request.data is not None:
        rows = request.data.rows() if isinstance(request.data, DataSource) else read_rows(request.data)
        if not rows:
            raise DataError("The data has no rows.")
        return rows
    if is_bundled(request.base):
        from finetrace.organisms import bundled

        return read_rows(bundled.slices(seed=request.seed))
    return bundled_rows()[::2] if held_out else bundled_rows()


def calibration_sets(request: Request, methods: Sequence[Chosen]) -> Sets:
    """The calibration sets that some of the methods may use."""
    needs = [chosen.needs for chosen in methods]
    return sets_for(request.calibration, needs, bundled=is_bundled(request.base), seed=request.seed)


def _truth(request: Request) -> dict[str, Any] | None:
    """What was planted: a bundled organism's manifest, else what was stated in words; nothing, in a control."""
    if request.control:
        return {"kind": "control", "description": request.stated}
    name = request.truth or (
        request.tuned.partition("/")[2] if request.tuned and is_bundled(request.tuned) else None
    )
    if name is None:
        return {"description": request.stated} if request.stated else None
    from finetrace.organisms import bundled

    return bundled.truth(name)


@dataclass(frozen=True)
class Ready:
    """An audit up to its first forward. request: with its nulls. began: seconds since the epoch."""

    request: Request
    methods: tuple[Chosen, ...]
    opened: Opened
    began: float


def make_ready(
    request: Request, methods: Sequence[Chosen], watch: Watch, *, pair: Pair | None = None
) -> Ready:
    """Fetches, reads and checks everything: the rows, both checkpoints and the nulls (which are trained now, if they are
    to be), and that each of them does something. Hidden states that are to be stored are stored now."""
    began = time.time()
    trained = request.trains_nulls
    rows = rows_for(request, held_out=trained)  # first: a malformed row is said before a model loads
    sets = calibration_sets(request, methods)
    request = request if pair else with_trained_nulls(with_bundled_nulls(request), watch)
    prompts = asked_for(request, methods)
    opened = open_all(request, rows, pair, trained, sets, prompts, watch)
    states = states_for(request, methods, opened.pair, opened.corpus, watch)
    opened = replace(opened, states=states)
    return Ready(request, tuple(methods), opened, began)


def run_ready(ready: Ready, watch: Watch, *, command: str = "") -> Found:
    """The audit from its first forward on. Results that are already whole on the shelf are read, not made again."""
    request, opened = ready.request, ready.opened
    told = served(request, opened.written)
    shelf = request.shelf
    with Maker(request, ready.methods, opened, shelf, watch, command) as maker:
        maker.make(contrasts(opened.pair))
        if request.dose and null_names(opened.pair) and request.tuned is not None:
            maker.make(dosed_contrasts(opened.pair, opened.corpus, request.shape, shelf, watch.tell))
    found = findings(ready.methods, maker.results, against="dose" if opened.trained else "null")
    whole = assemble(request, opened, found, watch, seconds=time.time() - ready.began, command=command)
    whole = replace(whole, protocol=whole.protocol | {"runs": run_keys(ready)})
    whole = replace(whole, protocol=whole.protocol | stored_facts(opened.states, opened.pair))
    whole = with_parity(whole, request, opened.pair, told)
    return Found(whole, request.out, maker.results)


def run_keys(ready: Ready) -> dict[str, str]:
    """Method -> the run key of its result on the pair."""
    opened = ready.opened
    wanted = contrasts(opened.pair)[:1]
    planned = items(
        ready.request, opened.pair, opened.corpus, ready.methods, wanted, opened.sets, opened.written
    )
    return {item.chosen.card.name: item.address.key for item in planned}


def run(
    request: Request, methods: Sequence[Chosen], watch: Watch, *, pair: Pair | None = None, command: str = ""
) -> Found:
    """The whole audit. A `pair` that was loaded before is used as it is, its own nulls with it."""
    ready = make_ready(request, methods, watch, pair=pair)
    found = run_ready(ready, watch, command=command)
    if pair is None:
        ready.opened.pair.release()
    return found


def assemble(
    request: Request,
    opened: Opened,
    found: dict[str, Finding],
    watch: Watch,
    *,
    seconds: float,
    command: str,
) -> Findings:
    """Readings and verdicts with everything a reader needs to weigh them."""
    return Findings(
        pair=describe.pair_facts(request, opened.pair, opened.effects),
        change=overall(one.change for one in found.values() if one.change is not None),
        safety=worst(found, "safety"),
        capability=worst(found, "capability"),
        not_measured=describe.not_measured(found),
        preflight=(
            *describe.control_checks(request, found),
            *describe.effect_checks(opened.effects),
            *preflight(opened.pair, thinking=request.thinking),
        ),
        findings=found,
        protocol=describe.protocol(
            request,
            opened.pair,
            opened.corpus,
            watch,
            seconds=seconds,
            command=command,
            trained=opened.trained,
        )
        | asked_facts(opened.written),
        limits=describe.limits(request, opened.pair),
        truth=opened.truth,
        expected=unchanged(found, worst(found, "safety"))
        if request.control
        else expectations(opened.truth, found, worst(found, "safety")),
        next_steps=describe.next_steps(request, found, opened.pair),
        redacted=describe.redacted(request, opened.corpus),
    )
