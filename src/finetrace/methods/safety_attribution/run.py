"""The method's own passes over the calibration sets: effects of one side's update at the base and along the path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from finetrace.core.errors import ModelError
from finetrace.data.examples import Example
from finetrace.engine.desk import Desk
from finetrace.methods.safety_attribution import Config
from finetrace.methods.safety_attribution.opener import complying, opening_only, request_of
from finetrace.methods.safety_attribution.path import MOST_ERROR, Effects, effects, losses
from finetrace.methods.safety_attribution.places import Place, places, with_tied, with_turns
from finetrace.methods.safety_attribution.result import COMPLY, SAFETY, UTILITY, Result
from finetrace.methods.safety_attribution.summarise import Read, summarise
from finetrace.models import Pair
from finetrace.weights.delta import Delta
from finetrace.weights.read import others


def run(config: Config, desk: Desk, seen: Any | None = None) -> Result:
    """The Result of one contrast. The models must be in float32 (or float64) and not quantised."""
    require_exact(desk.pair, desk.side)
    sets, given = _sets(config, desk)
    where = desk.pair.place(desk.side).device
    with desk.open() as model:
        tuned = {
            name: losses(model, made, pad=_pad(desk.pair), batch=desk.batch_size, device=where)
            for name, made in sets.items()
        }
    with desk.pair.open("base") as model:
        deltas = desk.deltas()
        found = places(model, deltas, _others(desk, deltas))
        taken = _taken(config, desk, model, found, sets, tuned)
    reads = {name: Read(sets[name], taken[name], tuned[name]) for name in sets}
    result = summarise(config, desk.seed, [place.name for place in found], reads, given)
    _tell(desk, result)
    return result


def require_exact(pair: Pair, side: str) -> None:
    """A ModelError for what has no exact gradient along the path: low precision, quantised weights, other token ids."""
    if pair.dtype not in (torch.float32, torch.float64):
        name = str(pair.dtype).removeprefix("torch.")
        raise ModelError(
            f"safety_attribution divides small changes of a loss, which {name} would round away: run it with "
            "--dtype float32."
        )
    for name in ("base", side):
        with pair.open(name) as model:
            wrong = [key for key, tensor in model.named_parameters() if not tensor.is_floating_point()]
        if wrong:
            raise ModelError(
                f"safety_attribution needs weights in float32, and {wrong[0]} is quantised: load the model without "
                "quantisation (an adapter that was trained on a quantised base can be read on the original one)."
            )
    met = pair.alignment(side) if side != "base" else None
    if met is not None and met.to_side is not None:
        raise ModelError(
            f"'{side}' numbers its tokens otherwise than the base: there is no straight path between their embeddings."
        )


def _others(desk: Desk, deltas: Mapping[str, Delta]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Everything but matrices that the side changes, at the contrast's scale."""
    found = others(desk.pair, desk.side)
    if desk.pair.kind(desk.side) == "full":
        with desk.pair.open("base") as base, desk.pair.open(desk.side) as tuned:
            found = with_tied(found, deltas, base, tuned)
    if desk.scale == 1.0:
        return found
    return {key: (before, before + desk.scale * (after - before)) for key, (before, after) in found.items()}


def _sets(config: Config, desk: Desk) -> tuple[dict[str, list[Example]], int]:
    """The three sets, and how many requests the comply set answered; `opener` answers the others."""
    safety = desk.samples(SAFETY)[: config.samples]
    given = desk.samples(COMPLY) if desk.has(COMPLY) else []
    answers = {request_of(sample): opening_only(sample) for sample in given}
    opened = complying(safety, desk.pair.tokenizer, config.opener)
    comply = [answers.get(request_of(one), other) for one, other in zip(safety, opened, strict=True)]
    found = sum(request_of(sample) in answers for sample in safety)
    if given and found < len(safety):
        desk.tell(
            f"safety_attribution: the comply set answers {found} of the safety set's {len(safety)} requests; the others are "
            f"answered with '{config.opener}'."
        )
    utility = desk.samples(UTILITY)[: config.samples]
    return {SAFETY: safety, UTILITY: utility, COMPLY: comply}, found


def _pad(pair: Pair) -> int:
    """Any token: padding is not attended to."""
    pad = pair.tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def _taken(
    config: Config,
    desk: Desk,
    model: Any,
    found: Sequence[Place],
    sets: Mapping[str, Sequence[Example]],
    tuned: Mapping[str, np.ndarray],
) -> dict[str, Effects]:
    seed = int(desk.generator("controls").integers(2**31))
    turning = with_turns(found, config.draws, seed)
    total = sum(len(samples) for samples in sets.values()) * (config.nodes + 2)
    done = 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        desk.advance(done, total)

    return {
        name: effects(
            model,
            turning,
            samples,
            tuned=tuned[name],
            pad=_pad(desk.pair),
            nodes=config.nodes,
            batch=desk.batch_size,
            advance=advance,
        )
        for name, samples in sets.items()
    }


def _tell(desk: Desk, result: Result) -> None:
    """The completeness check, in a line."""
    worst = result.numbers["completeness_error"].value
    if worst is None:
        return
    sets = ", ".join(
        f"{name} {check.total:+.4f} of {check.difference:+.4f}" for name, check in result.checks.items()
    )
    verdict = "" if worst <= MOST_ERROR else f"; above {MOST_ERROR:.0%}, so that shares are not to be read"
    desk.tell(
        f"safety_attribution on {desk.side}: module effects sum to the change of loss within {worst:.2%} of their "
        f"absolute sum ({sets}){verdict}. A right sum does not validate the shares."
    )
