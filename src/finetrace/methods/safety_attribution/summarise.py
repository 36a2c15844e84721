"""From effects by sample and place to estimates, tables and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.methods.safety_attribution import Config
from finetrace.methods.safety_attribution.path import Effects
from finetrace.methods.safety_attribution.places import layer_of
from finetrace.methods.safety_attribution.result import (
    COMPLY,
    QUANTITIES,
    SAFETY,
    UTILITY,
    Check,
    Path,
    Result,
)
from finetrace.methods.safety_attribution.tested import (
    NATS,
    Tested,
    contrasted,
    difference_estimate,
    mean_estimate,
    sample_keys,
    size_estimate,
    tested,
)
from finetrace.models.supervised import Sample


@dataclass(frozen=True, eq=False)
class Read:
    """One set as it was read. tuned [sample]: losses of the tuned model itself."""

    samples: Sequence[Sample]
    effects: Effects
    tuned: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        return sample_keys(self.samples)

    @property
    def totals(self) -> np.ndarray:
        """Integrated effects of all places together, [sample]."""
        return self.effects.integrated.sum(1)


def summarise(
    config: Config, seed: int, places: Sequence[str], sets: Mapping[str, Read], given: int
) -> Result:
    """sets: "safety", "utility" and "comply", the last of the first one's requests in the same order. given: how many of
    these a comply set answered."""
    safety, utility, comply = (sets[name] for name in (SAFETY, UTILITY, COMPLY))
    checks = {name: _check(read) for name, read in sets.items()}
    shown = {SAFETY: safety, UTILITY: utility}
    return Result(
        numbers=_numbers(seed, safety, utility, comply) | {"completeness_error": _worst(checks, sets)},
        slices={name: _slice(seed, read) for name, read in shown.items()},
        checks=checks,
        places=tuple(places),
        modules=_modules(seed, places, sets),
        layers=_layers(seed, places, sets),
        samples=_samples(sets),
        effects={name: read.effects.integrated for name, read in sets.items()},
        first={name: read.effects.first for name, read in sets.items()},
        controls={name: read.effects.controls.mean(1) for name, read in sets.items()},
        paths={name: _path(read) for name, read in sets.items()},
        nodes=config.nodes,
        opener=config.opener,
        given=given,
    )


def _numbers(seed: int, safety: Read, utility: Read, comply: Read) -> dict[str, Estimate]:
    both = np.concatenate([safety.totals, utility.totals])
    keys = np.concatenate([safety.keys, utility.keys])
    return {
        "effect_size": size_estimate(both, keys, seed),
        "safety_effect": mean_estimate(safety.totals, safety.keys, seed),
        "utility_effect": mean_estimate(utility.totals, utility.keys, seed),
        "safety_minus_utility": difference_estimate(
            (safety.totals, safety.keys), (utility.totals, utility.keys), seed
        ),
        "margin_effect": mean_estimate(safety.totals - comply.totals, safety.keys, seed),
        "safety_first_order": mean_estimate(safety.effects.first.sum(1), safety.keys, seed),
        "utility_first_order": mean_estimate(utility.effects.first.sum(1), utility.keys, seed),
        "control_effect": _control(safety),
    }


def _control(read: Read) -> Estimate:
    """The mean over random turns of the update; the interval is where 95% of single turns lie."""
    drawn = read.effects.controls.mean(1)
    if not len(drawn):
        return Estimate(None, NATS, 0, 0)
    low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975])) if len(drawn) > 1 else (None, None)
    return Estimate(float(drawn.mean()), NATS, len(drawn), len(drawn), low, high)


def _slice(seed: int, read: Read) -> dict[str, Estimate]:
    return {
        "effect_size": size_estimate(read.totals, read.keys, seed),
        "effect": mean_estimate(read.totals, read.keys, seed),
        "first_order": mean_estimate(read.effects.first.sum(1), read.keys, seed),
    }


def _check(read: Read) -> Check:
    effects = read.effects
    return Check(
        n=len(read.samples),
        base=float(effects.base.mean()),
        tuned=float(read.tuned.mean()),
        total=float(effects.integrated.mean(0).sum()),
        error=effects.errors[-1] if effects.errors else None,
        one_panel=effects.errors[0] if effects.errors else None,
        points=len(effects.at),
        read=float(effects.end.mean()),
    )


def _worst(checks: Mapping[str, Check], sets: Mapping[str, Read]) -> Estimate:
    """The largest completeness error of the sets; None where nothing changed."""
    known = [check.error for check in checks.values() if check.error is not None]
    n = sum(len(read.samples) for read in sets.values())
    return Estimate(max(known), "share", n, n) if known else Estimate(None, "share", 0, 0)


def _path(read: Read) -> Path:
    inner = read.effects.path.mean(1)
    return Path(
        at=np.concatenate([[0.0], read.effects.at, [1.0]]),
        loss=np.concatenate([[read.effects.base.mean()], inner, [read.effects.end.mean()]]),
    )


def _quantities(seed: int, sets: Mapping[str, Read], grouping: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of every quantity, for sums of places: grouping [place, group] of 0 and 1."""
    safety, utility, comply = (sets[name].effects.integrated @ grouping for name in (SAFETY, UTILITY, COMPLY))
    ours, theirs = sets[SAFETY].keys, sets[UTILITY].keys
    found = (
        tested(safety, ours, seed),
        tested(utility, theirs, seed),
        contrasted((safety, ours), (utility, theirs), seed),
        tested(safety - comply, ours, seed),
    )
    columns = {}
    for name, one in zip(QUANTITIES, found, strict=True):
        columns |= _columns(name, one)
    for name in (SAFETY, UTILITY):
        columns[f"first_{name}"] = (sets[name].effects.first @ grouping).mean(0)
    return columns


def _columns(name: str, found: Tested) -> dict[str, np.ndarray]:
    ends = {end: getattr(found, end) for end in ("low", "high", "p", "q")}
    return {name: found.value} | {f"{name}_{end}": values for end, values in ends.items()}


def _modules(seed: int, places: Sequence[str], sets: Mapping[str, Read]) -> Columns:
    names: dict[str, np.ndarray | list[str]] = {
        "module": list(places),
        "layer": np.array([-1 if (layer := layer_of(name)) is None else layer for name in places], dtype=int),
        "kind": [name.rpartition(".")[2] for name in places],
    }
    return Columns(names | _quantities(seed, sets, np.eye(len(places))))


def _layers(seed: int, places: Sequence[str], sets: Mapping[str, Read]) -> Columns:
    layers = [-1 if (layer := layer_of(name)) is None else layer for name in places]
    known = sorted(set(layers))
    grouping = np.array([[float(layer == one) for one in known] for layer in layers]).reshape(
        len(layers), len(known)
    )
    names: dict[str, np.ndarray | list[str]] = {
        "layer": np.array(known, dtype=int),
        "modules": grouping.sum(0).astype(int),
    }
    return Columns(names | _quantities(seed, sets, grouping))


def _samples(sets: Mapping[str, Read]) -> Columns:
    reads = sets.values()
    return Columns(
        {
            "set": [name for name, read in sets.items() for _ in read.samples],
            "sample": np.concatenate([np.arange(len(read.samples)) for read in reads]),
            "tokens": np.array([int(s.loss.sum()) for read in reads for s in read.samples]),
            "base_loss": np.concatenate([read.effects.base for read in reads]),
            "tuned_loss": np.concatenate([read.tuned for read in reads]),
            "effect": np.concatenate([read.totals for read in reads]),
            "first_order": np.concatenate([read.effects.first.sum(1) for read in reads]),
        }
    )
