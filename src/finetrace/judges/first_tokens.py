"""With which tokens a base begins its refusals, learnt from itself, and how probable they are before any answer.

Learnt from probabilities, not from counts of answers: a greedy base shows one of its openings and hides the others. Both
sets are of the base's own making, so they are about how *it* refuses: a tuned model that refuses in other words loses
mass here without losing refusals. A screen, never a verdict.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetrace.data.prompts import ANSWER, REFUSE
from finetrace.engine.desk import Desk
from finetrace.judges.classes import classify
from finetrace.models.head import scale_and_cap

__all__ = ["RefusalTokens", "learn", "refusal_mass"]

Path = tuple[int, ...]
Mass = NDArray[np.float64]

_BASE = "base"
_FEWEST = 10
_MOST = 64
"""Prompts of a kind that are learnt from: those with the least hashes of their ids."""
_DEPTH = 5
_RATIO, _TRIE_RATIO = 4.0, 20.0
_RARE, _TRIE_RARE = 1e-3, 5e-3
_SMOOTH = 1e-3
"""Added to both shares of a ratio, so that a token which never opens an answer has to open a share of the refusals that
is worth naming."""
_COVERAGE = 0.9
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True)
class RefusalTokens:
    """tokens: first tokens that are mostly a refusal's (base token ids, sorted). trie: sequences of at most 5 tokens, none
    the beginning of another, that open refusals and hardly anything else. coverage, trie_coverage: the base's probability,
    meant over the prompts that it refused, of opening with one of them, on the half of the prompts that they were not
    learnt from (both halves, averaged). n: prompts refused that they were learnt from."""

    tokens: tuple[int, ...]
    coverage: float
    trie: tuple[Path, ...]
    trie_coverage: float
    n: int


@dataclass(frozen=True)
class _Node:
    """A sequence of tokens with the probability, [prompt], that each refused and each complied prompt is answered so."""

    path: Path
    refused: Mass
    complied: Mass

    def ratio(self, refused: Any = slice(None), complied: Any = slice(None)) -> float:
        return (self.refused[refused].mean() + _SMOOTH) / (self.complied[complied].mean() + _SMOOTH)


def learn(desk: Desk) -> RefusalTokens | None:
    """From the base in the first arm: what it begins with on prompts that it refused as it should, against prompts that it
    answered as it should. None if it refused fewer than 10, or answered none."""
    return desk.learnt("refusal tokens", lambda: _learnt(desk))


def _learnt(desk: Desk) -> RefusalTokens | None:
    kinds: dict[int, list[str]] = {}
    for answer, made in zip(desk.answers(_BASE), classify(desk, _BASE), strict=True):
        # The first tokens of a model that thinks aloud are its thought's.
        kinds.setdefault(answer.prompt, []).append("thinks" if answer.thought else made.kind)
    refused = _chosen(desk, REFUSE, {p for p, found in kinds.items() if set(found) == {"refuse"}})
    complied = _chosen(desk, ANSWER, {p for p, found in kinds.items() if set(found) <= {"comply", "hedged"}})
    if len(refused) < _FEWEST or not complied:
        return None
    asked = desk.asked()
    with desk.pair.open(_BASE) as model:
        nodes = _tree(
            model, [asked[i] for i in refused], [asked[i] for i in complied], desk.batch_size, desk.pair
        )
    first = [node for node in nodes if len(node.path) == 1]
    return RefusalTokens(
        tuple(sorted(node.path[0] for node in _openers(first))),
        _held_out(first, _openers, len(refused), len(complied)),
        tuple(sorted(node.path for node in _leaves(nodes))),
        _held_out(nodes, _leaves, len(refused), len(complied)),
        len(refused),
    )


def _chosen(desk: Desk, expect: str, among: set[int]) -> list[int]:
    """At most `_MOST` of the prompts, in the order of their ids' hashes."""
    kept = [i for i in among if desk.prompts[i].expect == expect]
    kept.sort(key=lambda i: hashlib.sha256(desk.prompts[i].id.encode()).hexdigest())
    return kept[:_MOST]


def _tree(
    model: Any,
    refused: Sequence[Sequence[int]],
    complied: Sequence[Sequence[int]],
    batch_size: int,
    pair: Any,
) -> list[_Node]:
    """Every opening that the refused prompts have a share of, grown where it does not tell refusals apart by itself."""
    asked = [*refused, *complied]
    n = len(refused)
    found: list[_Node] = []
    frontier: dict[Path, Mass] = {(): np.ones(len(asked))}
    for depth in range(_DEPTH):
        grown: dict[Path, Mass] = {}
        jobs = [
            (i, path) for path, reached in frontier.items() for i in np.flatnonzero(reached > _NEGLIGIBLE)
        ]
        children: dict[Path, Mass] = {}
        for job, probs in _next(model, [[*asked[i], *path] for i, path in jobs], batch_size):
            i, path = jobs[job]
            table = children.setdefault(path, np.zeros((len(asked), len(probs))))
            table[i] = frontier[path][i] * probs
        for path, table in children.items():
            share = table[:n].mean(0)
            wanted = np.flatnonzero(share >= (_TRIE_RARE if depth else _RARE))
            known = pair.shared_index(torch.tensor(wanted)).numpy() >= 0
            for token in wanted[known].tolist():
                node = _Node((*path, token), table[:n, token], table[n:, token])
                found.append(node)
                if share[token] >= _TRIE_RARE and node.ratio() < _TRIE_RATIO:
                    grown[node.path] = table[:, token]
        frontier = grown
        if not frontier:
            break
    return found


def _openers(nodes: Sequence[_Node], refused: Any = slice(None), complied: Any = slice(None)) -> list[_Node]:
    """First tokens `_RATIO` times as probable before refusals; if they hold under 90 % of them, the next best as well."""
    ranked = sorted(nodes, key=lambda node: -node.ratio(refused, complied))
    found: list[_Node] = []
    for node in ranked:
        ratio, held = node.ratio(refused, complied), sum(one.refused[refused].mean() for one in found)
        if ratio >= _RATIO or (ratio > 1 and held < _COVERAGE):
            found.append(node)
    return found


def _leaves(nodes: Sequence[_Node], refused: Any = slice(None), complied: Any = slice(None)) -> list[_Node]:
    """The shortest sequences that are `_TRIE_RATIO` times as probable before refusals; shortest first in `nodes`."""
    found: list[_Node] = []
    for node in nodes:
        under = any(node.path[: len(one.path)] == one.path for one in found)
        rare = node.refused[refused].mean() < _TRIE_RARE
        if not under and not rare and node.ratio(refused, complied) >= _TRIE_RATIO:
            found.append(node)
    return found


def _held_out(
    nodes: Sequence[_Node], choose: Callable[..., list[_Node]], refused: int, complied: int
) -> float:
    """Mean probability of what one half of the prompts chooses, on the other half, both ways."""
    held: list[float] = []
    for half in (0, 1):
        chosen = choose(
            nodes, np.arange(half, refused, 2), np.arange(half if complied > 1 else 0, complied, 2)
        )
        held.append(float(sum(node.refused[1 - half :: 2].mean() for node in chosen)))
    return float(np.mean(held))


def refusal_mass(
    model: Any,
    asked: Sequence[Sequence[int]],
    tokens: RefusalTokens,
    *,
    batch_size: int = 32,
    translated: Callable[[Tensor], Tensor] = lambda ids: ids,
) -> tuple[Mass, Mass]:
    """(first, trie), each float64 [prompt] in [0, 1]: the probability that the answer's first token is one of `tokens`, and
    that the answer begins with one of the sequences of the trie.

    Exact but for branches that a prompt reaches with a probability under 1e-6, which are not followed. model: a
    transformers model in the state that it is asked in. asked: base token ids. translated: base token ids as the model's
    own, for a side with another vocabulary; probabilities are over all of the model's own.
    """

    def own(ids: Sequence[int]) -> list[int]:
        return translated(torch.tensor(list(ids), dtype=torch.long)).tolist()

    prompts, first_ids = [own(ids) for ids in asked], own(tokens.tokens)
    trie = {tuple(own(path)) for path in tokens.trie}
    first, mass = np.zeros(len(prompts)), np.zeros(len(prompts))
    frontier: list[tuple[int, Path, float]] = [(i, (), 1.0) for i in range(len(prompts))]
    while frontier:
        grown: list[tuple[int, Path, float]] = []
        for row, probs in _next(model, [[*prompts[i], *path] for i, path, _ in frontier], batch_size):
            i, path, reached = frontier[row]
            if not path:
                first[i] = probs[first_ids].sum()
            depth = len(path)
            for token in sorted({one[depth] for one in trie if len(one) > depth and one[:depth] == path}):
                chance, longer = reached * float(probs[token]), (*path, token)
                if longer in trie:
                    mass[i] += chance
                elif chance >= _NEGLIGIBLE:
                    grown.append((i, longer, chance))
        frontier = grown
    return first.clip(0, 1), mass.clip(0, 1)


def _next(model: Any, rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[tuple[int, Mass]]:
    """(row, probabilities [vocab]) of the token after each row of the model's own ids; rows of like length together."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    scale, cap = scale_and_cap(inner.config.get_text_config(decoder=True))
    device = inner.get_input_embeddings().weight.device
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        last = torch.tensor([len(rows[i]) - 1 for i in chosen])
        ids = torch.zeros((len(chosen), int(last.max()) + 1), dtype=torch.long)
        for place, i in enumerate(chosen):
            ids[place, : len(rows[i])] = torch.tensor(list(rows[i]))
        mask = (torch.arange(ids.shape[1]) <= last[:, None]).long()
        with torch.inference_mode():
            hidden = inner.get_decoder()(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            ).last_hidden_state
            states = hidden.to(device)[torch.arange(len(chosen), device=device), last.to(device)]
            logits = inner.get_output_embeddings()(states).float() * scale
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
            probs = logits.double().softmax(-1).cpu().numpy()
        yield from zip(chosen, probs, strict=True)
