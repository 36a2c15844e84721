"""From drift tables to comparisons of groups: of one finished pair, or of several training seeds at all logged steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t as student

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.neuron_drift.figures import figures, steps
from finetrace.methods.neuron_drift.result import Analysis, Claim, Comparison
from finetrace.methods.neuron_drift.tables import ALL, Grid, Sizes, counts, grid, kind_of
from finetrace.stats import (
    GroupVerdict,
    Pooled,
    benjamini_hochberg,
    fragile,
    group_verdict,
    holm,
    log_rms_ratio,
    pooled,
    sign_flip,
    similar,
    superiority,
    swap_pairs,
)
from finetrace.stats.reliability import LOWEST_CEILING

SAFETY_ONLY, SAFETY_TOP, UTILITY_TOP = "safety_only", "safety_top", "utility_top"
PLACEBO_ONLY, PLACEBO_TOP, RANDOM = "placebo_only", "placebo_top", "random"
MATCHED, PLACEBO = "matched", "placebo"
PRIMARY = (SAFETY_ONLY, MATCHED)
"""The one comparison that decides, fixed beforehand: the set difference against its fully matched control."""
CONFIRMATORY = tuple((group, kind) for group in (SAFETY_ONLY, SAFETY_TOP) for kind in (MATCHED, PLACEBO))
UNDECIDED = "undecided"
LOWEST_RATE = 0.8
_SEEDS_FOR_T = 3
_MAP_DRAWS = 2_000


@dataclass(frozen=True)
class Contrast:
    """One comparison to make. treated, control: the names of the two groups in the drift table; `treated` is the part of
    `group` that found partners, or the group itself. rate, balance: of the matching, as `Comparison` has them."""

    group: str
    kind: str
    treated: str
    control: str
    rate: float | None = None
    balance: dict[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        return (self.group, self.kind)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Matched entries, one by one, at the last step. treated, control: squared drift [seed, pair]; matrix: index [pair]
    into `modules`; block: [pair], the whole column that a pair is swapped with."""

    treated: np.ndarray
    control: np.ndarray
    matrix: np.ndarray
    block: np.ndarray
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """margin: log ratio. ceilings: group -> noise ceiling; a group without one is taken as reliable."""

    margin: float = math.log(1.10)
    draws: int = 10_000
    seed: int = 0
    ceilings: Mapping[str, float] = field(default_factory=dict)


def analyse(
    rows: Columns,
    contrasts: Sequence[Contrast],
    sizes: Sizes,
    pairs: Mapping[tuple[str, str], Pairs] | None = None,
    settings: Settings | None = None,
) -> Analysis:
    """rows: the drift table (`tables.COLUMNS`), group "all" among its groups. sizes: the groups to report, with all their
    weights. pairs: (group, kind) -> its matched pairs. The last step that every seed has is the one that is compared."""
    settings, pairs, found = settings or Settings(), pairs or {}, grid(rows)
    groups = [name for name in sizes if name != ALL]
    drafts = [_draft(found, contrast, pairs.get(contrast.key), settings) for contrast in contrasts]
    comparisons = _judged(drafts, contrasts, settings)
    primary = next((c for c in contrasts if c.key == PRIMARY), None)
    return Analysis(
        seeds=len(found.seeds),
        margin=math.exp(settings.margin),
        groups=tuple(figures(found, name, sizes[name]) for name in groups),
        comparisons=comparisons,
        claims=_claims(comparisons),
        family=sum(c.p_holm is not None for c in comparisons),
        map=_map(found, primary, pairs.get(PRIMARY), settings),
        steps=steps(found, groups),
        curves=_curves(found, contrasts, settings),
        counts=counts(sizes, found, groups),
    )


def untouched(contrasts: Sequence[Contrast], sizes: Sizes, settings: Settings | None = None) -> Analysis:
    """The analysis of a fine-tune that changes no matrix of the groups: their sizes, and no data of drift."""
    modules = sorted({module for size in sizes.values() for module in size}) or ["none"]
    nothing = {"seed": 0, "step": 0, "layer": 0, "n": 0, "square": 0.0, "weight_square": 0.0, "dot": 0.0}
    rows = Columns(
        {"group": [ALL] * len(modules), "module": modules}
        | {key: np.full(len(modules), value) for key, value in nothing.items()}
    )
    return analyse(rows, contrasts, sizes, None, settings)


@dataclass(frozen=True, eq=False)
class _Draft:
    """A comparison before the family is known."""

    pool: Pooled | None
    comparison: Comparison


def thetas(found: Grid, contrast: Contrast, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """theta [seed, matrix] at the step of index `step`, and the matrices' weights; None where a group is not tracked."""
    first, second = found.group(contrast.treated), found.group(contrast.control)
    if first is None or second is None:
        return None
    effects = log_rms_ratio(
        found.square[:, step, first],
        np.broadcast_to(found.n[first].astype(np.float64), found.square[:, step, first].shape),
        found.square[:, step, second],
        np.broadcast_to(found.n[second].astype(np.float64), found.square[:, step, second].shape),
    )
    there = found.adapted & (found.n[first] > 0) & (found.n[second] > 0)
    return effects, np.where(there, found.n[first], 0).astype(np.float64)


def _pool(found: Grid, contrast: Contrast, step: int, seed: int) -> Pooled | None:
    got = thetas(found, contrast, step) if found.steps else None
    return None if got is None else pooled(*got, found.layers, seed=seed)


def _draft(found: Grid, contrast: Contrast, pairs: Pairs | None, settings: Settings) -> _Draft:
    pool = _pool(found, contrast, -1, settings.seed)
    effects, weights = (thetas(found, contrast, -1) if found.steps else None) or (
        np.empty((1, 0)),
        np.empty(0),
    )
    usable = np.isfinite(effects).all(axis=0) & (weights > 0)
    plain = effects[:, usable].mean(axis=0)
    narrow = pool.interval(0.90) if pool else None
    return _Draft(
        pool,
        Comparison(
            group=contrast.group,
            kind=contrast.kind,
            theta=estimate(pool, "log ratio", int(weights.sum())),
            low90=narrow.low if narrow else None,
            high90=narrow.high if narrow else None,
            unweighted=float(plain.mean()) if len(plain) else None,
            seeds=pool.seeds if pool else 0,
            layers=pool.layers if pool else 0,
            matrices=pool.matrices if pool else 0,
            dropped=pool.dropped if pool else 0,
            p=pool.p if pool else None,
            p_holm=None,
            p_equivalence=None,
            p_permutation=_permuted(pairs, settings),
            p_flip=sign_flip(plain, seed=settings.seed) if len(plain) > 1 else None,
            superiority=_superior(pairs, found, settings),
            smallest_detectable=pool.smallest_detectable_ratio if pool else None,
            rate=contrast.rate,
            balance=dict(contrast.balance),
            word=UNDECIDED,
            reason="",
        ),
    )


def estimate(pool: Pooled | None, unit: str, n: int) -> Estimate:
    """A pooled effect as a figure; its clusters are None, as no sample of texts went into it."""
    if pool is None:
        return Estimate(None, unit, 0, None)
    wide = pool.interval(0.95)
    low, high = (wide.low, wide.high) if wide else (None, None)
    return Estimate(pool.value, unit, n, None, low, high, pool.replicates)


def _permuted(pairs: Pairs | None, settings: Settings) -> float | None:
    """p by swaps of matched pairs; with several seeds, of their drift averaged as shares of each matrix's."""
    if pairs is None or not pairs.treated.shape[1]:
        return None
    treated, control = _shared(pairs)
    return swap_pairs(
        treated, control, pairs.matrix, blocks=pairs.block, draws=settings.draws, seed=settings.seed
    )


def _shared(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Squared drift [pair] averaged over seeds, each seed's total in a matrix being 1: no seed outweighs another."""
    n = len(pairs.modules)
    total = np.stack([np.bincount(pairs.matrix, row, n) for row in pairs.treated + pairs.control])
    scale = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)[:, pairs.matrix]
    return (pairs.treated * scale).mean(axis=0), (pairs.control * scale).mean(axis=0)


def _superior(pairs: Pairs | None, found: Grid, settings: Settings) -> Estimate | None:
    if pairs is None or not pairs.treated.shape[1]:
        return None
    n = len(pairs.modules)
    chances = np.stack(
        [superiority(t, c, pairs.matrix, n) for t, c in zip(pairs.treated, pairs.control, strict=True)]
    )
    weights = np.bincount(pairs.matrix, minlength=n).astype(np.float64)
    moved = (pairs.treated + pairs.control).sum(axis=0)
    weights = np.where(np.bincount(pairs.matrix, moved, n) > 0, weights, 0.0)
    known = dict(zip(found.modules, found.layers, strict=True))
    layers = np.array([known.get(module, -1) for module in pairs.modules], np.int64)
    pool = pooled(chances, weights, layers, seed=settings.seed)
    return estimate(pool, "chance", int(weights.sum()))


def _judged(
    drafts: Sequence[_Draft], contrasts: Sequence[Contrast], settings: Settings
) -> tuple[Comparison, ...]:
    """Words, with Holm's correction over the confirmatory family."""
    confirmed = [i for i, contrast in enumerate(contrasts) if contrast.key in CONFIRMATORY]
    ps = [math.nan if (p := drafts[i].comparison.p) is None else p for i in confirmed]
    adjusted = {i: float(p) for i, p in zip(confirmed, holm(ps), strict=True) if not math.isnan(p)}
    found = []
    for i, draft in enumerate(drafts):
        verdict = group_verdict(draft.pool, settings.margin, p_adjusted=adjusted.get(i))
        found.append(
            replace(
                draft.comparison,
                p_holm=adjusted.get(i),
                p_equivalence=verdict.p_equivalence,
                **_word(verdict, draft.comparison, settings),
            )
        )
    return tuple(found)


def _word(verdict: GroupVerdict, comparison: Comparison, settings: Settings) -> dict[str, str]:
    """The verdict, withheld where the groups or the matching do not carry one."""
    ceiling = settings.ceilings.get(comparison.group)
    if ceiling is not None and ceiling < LOWEST_CEILING:
        reason = f"two calibration sets would agree on {ceiling:.0%} of the group at best: it is mostly noise"
        return {"word": UNDECIDED, "reason": reason}
    if comparison.rate is not None and comparison.rate < LOWEST_RATE:
        reason = f"only {comparison.rate:.0%} of the group found a partner, below {LOWEST_RATE:.0%}"
        return {"word": UNDECIDED, "reason": reason}
    return {"word": verdict.word, "reason": verdict.reason}


def _claims(comparisons: Sequence[Comparison]) -> tuple[Claim, ...]:
    """H1 and H2 of the set difference, as seed 003 names them."""
    by_kind = {c.kind: c for c in comparisons if c.group == SAFETY_ONLY}
    matched, placebo = by_kind.get(MATCHED), by_kind.get(PLACEBO)
    first, second = _verdict_of(matched), _verdict_of(placebo)
    theta, other = (c.theta.value if c else None for c in (matched, placebo))
    found = (fragile(first, second, theta, other), similar(first))
    return tuple(Claim(h.name, h.word, h.sentence) for h in found)


def _verdict_of(comparison: Comparison | None) -> GroupVerdict:
    if comparison is None:
        return GroupVerdict("inconclusive", "not compared", None)
    if comparison.word == UNDECIDED:
        return GroupVerdict("inconclusive", comparison.reason, comparison.p_equivalence)
    return GroupVerdict(comparison.word, comparison.reason, comparison.p_equivalence)  # pyright: ignore[reportArgumentType]


def _map(found: Grid, contrast: Contrast | None, pairs: Pairs | None, settings: Settings) -> Columns:
    """Theta of every matrix, with q over all of them: t over three seeds or more, else swaps within the matrix."""
    got = thetas(found, contrast, -1) if contrast is not None and found.steps else None
    if got is None:
        return Columns({key: [] for key in ("layer", "kind", "module", "theta", "p", "q")})
    effects, weights = got
    kept = np.flatnonzero((weights > 0) & np.isfinite(effects).all(axis=0))
    p = np.array([_p_of_matrix(found, effects[:, m], found.modules[m], pairs, settings) for m in kept])
    return Columns(
        {
            "layer": found.layers[kept],
            "kind": [kind_of(found.modules[m]) for m in kept],
            "module": [found.modules[m] for m in kept],
            "theta": effects[:, kept].mean(axis=0),
            "p": p,
            "q": benjamini_hochberg(p) if len(p) else p,
        }
    )


def _p_of_matrix(
    found: Grid, effects: np.ndarray, module: str, pairs: Pairs | None, settings: Settings
) -> float:
    if len(found.seeds) >= _SEEDS_FOR_T:
        error = effects.std(ddof=1) / math.sqrt(len(effects))
        return float(2 * student.sf(abs(effects.mean()) / error, len(effects) - 1)) if error else math.nan
    if pairs is None or module not in pairs.modules:
        return math.nan
    mine = pairs.matrix == pairs.modules.index(module)
    treated, control = pairs.treated[:, mine].mean(axis=0), pairs.control[:, mine].mean(axis=0)
    draws = min(settings.draws, _MAP_DRAWS)
    p = swap_pairs(
        treated,
        control,
        np.zeros(int(mine.sum()), np.int64),
        blocks=pairs.block[mine],
        draws=draws,
        seed=settings.seed,
    )
    return math.nan if p is None else p


def _curves(found: Grid, contrasts: Sequence[Contrast], settings: Settings) -> Columns:
    """Theta over the steps, with its 95% band; a log ratio, so that more training is not more of it."""
    rows = []
    for contrast in contrasts:
        for i, step in enumerate(found.steps):
            pool = _pool(found, contrast, i, settings.seed)
            if pool is not None:
                wide = pool.interval(0.95)
                low, high = (wide.low, wide.high) if wide else (math.nan, math.nan)
                rows.append((step, contrast.group, contrast.kind, pool.value, low, high))
    return Columns(
        {
            "step": np.array([row[0] for row in rows], np.int64),
            "group": [row[1] for row in rows],
            "kind": [row[2] for row in rows],
            **{
                key: np.array([row[k] for row in rows], np.float64)
                for k, key in ((3, "theta"), (4, "low"), (5, "high"))
            },
        }
    )
