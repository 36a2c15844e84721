"""What a run has found before, for stages that only read: the very same work, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from finetrace.api.audit import Ready, asked_for, calibration_sets, rows_for, with_bundled_nulls
from finetrace.api.calibration import identity as identity_of_set
from finetrace.api.judging import identity as identity_of_judges
from finetrace.api.nulls import trained_folders
from finetrace.api.opening import open_request
from finetrace.api.plan import settings_key
from finetrace.api.request import Chosen, Request
from finetrace.api.run.spec import Spec, command_of
from finetrace.core.errors import BadInput, DataError
from finetrace.core.findings import Findings
from finetrace.core.runkey import digest
from finetrace.data import Corpus, build_corpus
from finetrace.data.prompts import identity as identity_of_prompts
from finetrace.models import Pair
from finetrace.models.tokens import load_tokenizers
from finetrace.report import load_findings
from finetrace.store.keeping import identity as identity_of_store

__all__ = ["WORK", "at_hand", "work_of"]

WORK = "work"
"""Where the protocol says which work it was."""
_BASE = "base"


def at_hand(spec: Spec, folder: Path) -> Findings:
    """The findings of this very run, read from its report's folder: no weight is loaded and nothing goes forwards.

    Raises BadInput, with the command that makes them, where they are not there or are those of other work: of another
    checkpoint, text, seed or option.
    """
    make = f"make them with: {command_of(spec.config, 'diffing')}"
    try:
        found = load_findings(folder / "findings.json")
    except DataError:
        raise BadInput(f"There are no results of this run in {folder}; {make}") from None
    held, wanted = found.protocol.get(WORK, {}), _work_now(spec)
    other = [part for part, key in wanted.items() if held.get(part) != key]
    if other:
        raise BadInput(f"The results in {folder} are of another run: it had other {', '.join(other)}; {make}")
    return found


def work_of(ready: Ready) -> dict[str, str]:
    """What the work stands on, part by part, as hashes: of two runs all are the same, or their findings may differ."""
    return _work(ready.request, ready.methods, ready.opened.pair, ready.opened.corpus)


def _work_now(spec: Spec) -> dict[str, str]:
    """The same of a run that is only asked for: files are hashed and texts tokenised, no weight is loaded."""
    request = _with_nulls(spec.request)
    rows = rows_for(spec.request, held_out=spec.request.trains_nulls)
    pair = open_request(request)
    plan = pair.plan
    tokenizer = load_tokenizers(
        plan.base, plan.others, plan.tokenizer, plan.chat_template, plan.trust_remote_code
    )[_BASE]
    corpus = build_corpus(
        rows,
        tokenizer,
        system=request.system,
        chat_template=request.chat_template,
        max_tokens=request.max_tokens,
        context=pair.max_positions,
        thinking=request.thinking,
    )
    return _work(request, spec.chosen, pair, corpus)


def _with_nulls(request: Request) -> Request:
    if not request.trains_nulls:
        return with_bundled_nulls(request)
    pair = open_request(replace(request, nulls=()))
    folders = [folder for folder in trained_folders(request, pair) if folder.is_dir()]
    return replace(request, nulls=tuple(map(str, folders)))


def _work(request: Request, methods: Sequence[Chosen], pair: Pair, corpus: Corpus) -> dict[str, str]:
    asked = asked_for(request, methods)
    parts = {
        "checkpoints": {side: pair.identity(side) for side in pair.sides},
        "texts": [corpus.identity, list(corpus.slices)],
        "methods": [[one.card.name, one.card.version, asdict(one.config)] for one in methods],
        "prompts": [identity_of_prompts(asked), list(request.arms), asdict(request.written)] if asked else [],
        "sets": {name: identity_of_set(rows) for name, rows in calibration_sets(request, methods).items()},
        "judges": identity_of_judges(request) if request.judges else [],
        "settings": settings_key(request, pair)
        | {"dose": request.dose}
        | identity_of_store(request.store, pair.dtype),
    }
    return {name: digest(part)[:16] for name, part in parts.items()}
