"""What `neuron_drift` finds. No weight's place is in it: counts and sums only."""

from __future__ import annotations

from dataclasses import dataclass

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns


@dataclass(frozen=True)
class GroupFigures:
    """Drift of one group over the matrices that the fine-tune adapts, at the last step; means over seeds.

    entries: single weights in the group; adapted: of these, in adapted matrices, the only ones that anything is said of.
    l2: norm of the change; relative: over the weights' norm; one_minus_cosine: of the angle between old and new;
    rms_share: root mean square of the change over that of all weights of the same matrices. None where nothing is adapted.
    """

    group: str
    entries: int
    adapted: int
    matrices: int
    l2: float | None
    relative: float | None
    one_minus_cosine: float | None
    rms_share: float | None

    @property
    def adapted_share(self) -> float | None:
        return self.adapted / self.entries if self.entries else None


@dataclass(frozen=True)
class Comparison:
    """One group against one control. kind: "matched", "placebo", "magnitude", "random" or "utility".

    theta: pooled log ratio of root mean square drift, above 0 where the group moved more, with its 95% interval; low90,
    high90: the interval of the equivalence test. unweighted: the plain mean over matrices. seeds, layers, matrices: what it
    was pooled over; dropped: matrices without drift or partners. p_holm: within the confirmatory family, None outside.
    p_permutation: swaps of matched pairs by whole columns; p_flip: signs of the matrices. superiority: chance that an entry
    moved more than its matched one. smallest_detectable: true ratio that would be seen with chance 0.8, None where none can be
    named. rate: share of the group that found a partner; balance: what the matching was on -> standardised gap left between the groups.
    word, reason: as `finetrace.stats.group_verdict` gives them, "undecided" where too few found a partner or the group is
    mostly noise.
    """

    group: str
    kind: str
    theta: Estimate
    low90: float | None
    high90: float | None
    unweighted: float | None
    seeds: int
    layers: int
    matrices: int
    dropped: int
    p: float | None
    p_holm: float | None
    p_equivalence: float | None
    p_permutation: float | None
    p_flip: float | None
    superiority: Estimate | None
    smallest_detectable: float | None
    rate: float | None
    balance: dict[str, float]
    word: str
    reason: str


@dataclass(frozen=True)
class Reliability:
    """Whether a group can be found again. split_half: Jaccard index of the groups by two halves of the samples; chance: of
    random groups; ceiling: expected between two whole sets, under 0.5 of which the group is not interpreted."""

    group: str
    samples: int
    split_half: float
    chance: float
    ceiling: float


@dataclass(frozen=True)
class Claim:
    """One of seed 003's hypotheses, as it names them: supported, consistent, not supported or undecided."""

    name: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Analysis:
    """All that drift tables say. map: layer, kind, module, theta, p, q of the primary comparison, one row a matrix.
    steps: step, group, l2, relative, one_minus_cosine, rms_share; curves: step, group, kind, theta, low, high: one row a
    logged step. counts: group, layer, entries, adapted."""

    seeds: int
    margin: float
    groups: tuple[GroupFigures, ...]
    comparisons: tuple[Comparison, ...]
    claims: tuple[Claim, ...]
    family: int
    map: Columns
    steps: Columns
    curves: Columns
    counts: Columns


@dataclass(frozen=True)
class Anchor:
    """What the margin means in behaviour: the group's change times `factor` against as it is, over the safety samples.

    loss: nats a token of the safety answers; mass: probability, at the first answer token, of the tokens that those answers
    begin with. Both as they are and with the group scaled; the changes are paired over samples.
    """

    group: str
    factor: float
    loss: float
    mass: float
    loss_change: Estimate
    mass_change: Estimate


@dataclass(frozen=True)
class Result:
    """numbers, slices: as every method has them; the one slice is "weights". seed003: group, entries, mean, sd, median,
    upper_quartile, largest, relative_mean, relative_largest, d, as seed 003 computes them; seed003_rule: its conclusion."""

    numbers: dict[str, Estimate]
    slices: dict[str, dict[str, Estimate]]
    analysis: Analysis
    reliability: tuple[Reliability, ...]
    overlap: Estimate
    anchor: Anchor | None
    seed003: Columns
    seed003_rule: str | None
    notes: tuple[str, ...]
