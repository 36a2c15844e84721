"""What `import finetrace` gives: load_pair, diff, audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetrace.api.defaults import METHODS
from finetrace.api.watch import Watch

if TYPE_CHECKING:
    from finetrace.api.found import Found
    from finetrace.models import Pair

__all__ = ["audit", "diff", "load_pair"]


def load_pair(base: str, tuned: str | None, **options: Any) -> Pair:
    """A base model and a fine-tune of it as one object.

    base, tuned: a folder, a hub id (`org/name`, for adapters also `org/name/subfolder`) or a bundled name (`tinyworld`,
    `tinyworld/refusal_erosion`). tuned=None reads the base against itself. options: as in `finetrace.models.open_pair`
    (dtype, device, revision, ...), and nulls: name -> source of harmless fine-tunes of the same base (on the bundled base,
    the bundled ones unless given). Raises ModelError for what cannot be read, does not fit or changes nothing.
    """
    from finetrace.api.audit import with_bundled_nulls
    from finetrace.api.names import check_source, null_sources, resolve
    from finetrace.api.request import Request
    from finetrace.models import open_pair
    from finetrace.weights import effect, require_effect

    check_source("base", base)
    if tuned is not None:
        check_source("tuned", tuned)
    nulls = options.pop("nulls", None)
    if nulls is None:
        nulls = null_sources(with_bundled_nulls(Request(base, tuned)).nulls)
    nulls = {name: resolve(source) for name, source in nulls.items()}
    pair = open_pair(resolve(base), resolve(tuned) if tuned is not None else None, nulls=nulls, **options)
    require_effect(effect(pair, "tuned"))
    return pair


def diff(
    pair: Pair,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    methods: Sequence[str] = METHODS,
    out: str | Path = "finetrace-runs",
    watch: Watch | None = None,
    **options: Any,
) -> Found:
    """What `audit` finds, for a pair that is loaded already; writes results under `out`, but no report.

    `found["kl"].numbers["kl_mean"].value`, `found.report("report.html")`. data, options: as in `audit`.
    """
    from finetrace.api.audit import run
    from finetrace.api.names import bundled_name
    from finetrace.api.request import Request, check

    sources = {side: bundled_name(pair.source(side).name) for side in pair.sides}
    request = Request(
        base=sources.pop("base"),
        tuned=sources.pop("tuned") if pair.kind("tuned") != "base" else None,
        data=_listed(data),
        methods=tuple(methods),
        out=Path(out),
        **options,
    )
    return run(request, check(request), watch or Watch(), pair=pair)


def _listed(data: Any) -> Any:
    """Rows are read more than once: an iterator becomes a list."""
    return data if data is None or isinstance(data, str | Path) else list(data)


def audit(
    base: str,
    tuned: str | None,
    *,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    methods: Sequence[str] = METHODS,
    nulls: Sequence[str] = (),
    out: str | Path = "finetrace-audit",
    watch: Watch | None = None,
    **options: Any,
) -> Found:
    """Compares two models and writes report.html, report.json, model-card.md and findings.json into `out`.

    data: a JSONL, Parquet or text file, a hub dataset id, or rows with `text` or `messages` (and `slice`); None reads the
    bundled samples. nulls: harmless fine-tunes of the same base; with fewer than three the change stays undecided.
    options: the other fields of `finetrace.api.request.Request` (dtype, device, seed, max_tokens, ...). Results land on
    the shelf under `out/runs`, and those that are there already are not made again. Raises BadInput for what is wrong.
    """
    from finetrace.api.audit import run
    from finetrace.api.request import Request, check
    from finetrace.report import write_report

    request = Request(
        base=str(base),
        tuned=None if tuned is None else str(tuned),
        data=_listed(data),
        methods=tuple(methods),
        nulls=tuple(str(null) for null in nulls),
        out=Path(out),
        **options,
    )
    chosen = check(request)
    found = run(request, chosen, watch or Watch())
    write_report(found.findings, Path(out))
    return found
