"""The ground-truth benchmark: every method on every organism and null of a world, in one pass, scored by the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetrace.api.audit import calibration_sets, open_all
from finetrace.api.bench.scores import TOP, TokenScore, token_score
from finetrace.api.bench.zoo import Zoo
from finetrace.api.calibration import bundled_set
from finetrace.api.maker import Maker
from finetrace.api.plan import contrasts
from finetrace.api.request import Chosen, Request, check
from finetrace.api.verdicts import slice_verdicts
from finetrace.api.watch import Watch
from finetrace.core.card import method
from finetrace.core.errors import BadInput
from finetrace.core.findings import SliceVerdict
from finetrace.data import Row, read_rows
from finetrace.engine import PAIR
from finetrace.stats import false_positive_bound

UNRELATED = "text"
"""The slice whose tokens name a change: ordinary documents that hold nothing of what was planted."""
BEYOND = "beyond-nulls"
FEWEST = 4


@dataclass(frozen=True)
class FalsePositives:
    """Nulls, each held against all others, that a method calls changed on any slice. high: upper 95% bound of the rate."""

    method: str
    found: tuple[str, ...]
    k: int
    high: float


@dataclass(frozen=True)
class Bench:
    """verdicts: side -> method -> slice -> verdict. tokens: scores of every planted organism, on unrelated text and on
    the slices that it was planted in. margins: method -> the factor that a change had to exceed."""

    world: str
    world_seed: int
    truths: Mapping[str, Mapping[str, Any]]
    methods: tuple[str, ...]
    primaries: Mapping[str, str]
    margins: Mapping[str, float]
    verdicts: Mapping[str, Mapping[str, Mapping[str, SliceVerdict]]]
    tokens: tuple[TokenScore, ...]
    false_positives: tuple[FalsePositives, ...]
    slices: Mapping[str, int]
    seed: int


def bench(
    zoo: Zoo,
    methods: Sequence[str],
    *,
    out: Path,
    per_slice: int = 80,
    seed: int = 0,
    rows: Sequence[Mapping[str, Any]] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    watch: Watch | None = None,
) -> Bench:
    """Runs `methods` on every organism of the zoo. Results land on the shelf under `out/runs` and are not made twice.

    rows: what is read; `per_slice` texts of each of the world's audit slices if not given. options: method -> its
    configuration.
    """
    if len(zoo.nulls) < FEWEST:
        raise BadInput(
            f"{zoo.name} has {len(zoo.nulls)} nulls; at least {FEWEST} are needed, so that one can be left out."
        )
    rows = _audit_rows(zoo, per_slice, seed) if rows is None else list(rows)
    request = Request(
        base=zoo.base, tuned=None, data=rows, out=out, methods=tuple(methods), nulls=tuple(zoo.sources.values()),
        seed=seed, dose=False, calibration=_calibration(zoo, methods, seed), options=options or {},
    )  # fmt: skip
    chosen = check(request)
    opened = open_all(request, read_rows(rows), None, trained=False, sets=calibration_sets(request, chosen))
    maker = Maker(request, chosen, opened, request.shelf, watch or Watch(), "finetrace bench")
    maker.make([c for c in contrasts(opened.pair) if c.label.startswith("null:")])
    results = {
        name: {label.removeprefix("null:"): result for label, result in by_label.items()}
        for name, by_label in maker.results.items()
    }
    alive = int((~(opened.pair.vocabulary.dead | opened.pair.vocabulary.special)).sum())
    verdicts = _verdicts(zoo, chosen, results)
    counts = {s.name: s.rows for s in opened.corpus.summary()}
    opened.pair.release()
    return Bench(
        world=zoo.name,
        world_seed=zoo.world_seed,
        truths=zoo.truths,
        methods=tuple(one.card.name for one in chosen),
        primaries={one.card.name: one.card.primary or "" for one in chosen},
        margins={one.card.name: one.card.margin for one in chosen},
        verdicts=verdicts,
        tokens=tuple(_tokens(zoo, chosen, results, alive)),
        false_positives=tuple(_false_positives(zoo, chosen, verdicts)),
        slices=counts,
        seed=seed,
    )


def _audit_rows(zoo: Zoo, per_slice: int, seed: int) -> Sequence[Mapping[str, Any]]:
    from finetrace.organisms import bundled
    from finetrace.organisms.world import make_world

    return bundled.slices(seed=seed, n_per_slice=per_slice, world=make_world(zoo.world_seed))


def _calibration(zoo: Zoo, methods: Sequence[str], seed: int) -> dict[str, Sequence[Row]]:
    """The zoo's own calibration sets, of its world; none where no method asks for any."""
    cards = [method(name) for name in methods]
    needs = [card.needs(card.config()) for card in cards]
    wanted = dict.fromkeys(name for one in needs for name in (*one.calibration, *one.optional))
    return {name: bundled_set(name, seed, zoo.world_seed) for name in wanted}


def _against(zoo: Zoo, side: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """The side as the pair, every null but itself as a null."""
    others = {f"null:{name}": results[name] for name in zoo.nulls if name != side}
    return {PAIR: results[side], **others}


def _verdicts(
    zoo: Zoo, chosen: Sequence[Chosen], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, SliceVerdict]]]:
    """As an audit gives them: one Holm family over all primaries and slices of a side."""
    found: dict[str, dict[str, dict[str, SliceVerdict]]] = {}
    for side in zoo.truths:
        sets = {one.card.name: _against(zoo, side, results[one.card.name]) for one in chosen}
        tests = sum(len(by_label[PAIR].slices) for by_label in sets.values())
        found[side] = {one.card.name: slice_verdicts(one, sets[one.card.name], tests) for one in chosen}
    return found


def _tokens(
    zoo: Zoo, chosen: Sequence[Chosen], results: Mapping[str, Mapping[str, Any]], alive: int
) -> list[TokenScore]:
    """Every organism with planted tokens, under every method that ranks tokens."""
    scores = []
    for one in chosen:
        if not one.card.has("ranking"):
            continue
        rank, made = one.card.part("ranking").top_tokens, results[one.card.name]
        lists: dict[str, dict[str, Sequence[int]]] = {}
        for organism in zoo.organisms:
            truth = zoo.truths[organism]
            planted = truth["planted"]["token_ids"]
            for where in dict.fromkeys((UNRELATED, *truth["expected"]["beyond"])) if planted else ():
                if where not in lists:
                    lists[where] = {}
                for side in (organism, *zoo.nulls):
                    if side not in lists[where]:
                        others = [made[null] for null in zoo.nulls if null != side]
                        lists[where][side] = rank(made[side], where, n=TOP, nulls=others)
                scores.append(
                    token_score(organism, one.card.name, where, planted, lists[where], zoo.nulls, alive)
                )
    return scores


def _false_positives(
    zoo: Zoo, chosen: Sequence[Chosen], verdicts: Mapping[str, Mapping[str, Mapping[str, SliceVerdict]]]
) -> list[FalsePositives]:
    rows = []
    for name in [one.card.name for one in chosen]:
        found = tuple(
            null for null in zoo.nulls if any(v.change == BEYOND for v in verdicts[null][name].values())
        )
        rows.append(
            FalsePositives(name, found, len(zoo.nulls), false_positive_bound(len(found), len(zoo.nulls)))
        )
    return rows
