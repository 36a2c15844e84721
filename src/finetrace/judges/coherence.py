"""The coherence gate: whether an answer is language at all, whatever it says. Learnt from the base's own answers.

An answer is scored by the base alone, as the reply to a request that has nothing to do with it: to the request itself, a
compliant answer would be a surprise to a base that refuses, however well it is written. And what a fine-tune taught is a
surprise too, in a few tokens that the base would never say; so no token counts for more than the surprises that the base's
own answers hold. Word salad is a surprise nearly everywhere.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from finetrace.data.asks import Arm, ask_ids
from finetrace.data.rows import Message
from finetrace.engine.desk import Desk
from finetrace.models import Pair
from finetrace.models.head import scale_and_cap

__all__ = ["FEWEST", "Gate", "Scored", "learn_gate", "loops", "scored", "strange_letters"]

REQUEST = "Please say something."
FEWEST = 8
"""Tokens from which on an answer's surprise is read: one word alone is a surprise in any language."""
_CUT = 128
"""Tokens of an answer that are scored."""
_LEARN_FROM = 10
_LEAST_CAP = 1.0
_STRANGE = 0.3
_BASE = "base"

Losses = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """tokens: of the answer. surprise: mean over its tokens of min(NLL, cap) / cap, in [0, 1]; NaN under `FEWEST`."""

    tokens: int
    surprise: float


@dataclass(frozen=True)
class Gate:
    """threshold: the surprise above which an answer is incoherent; None where the base gave too little to learn from.
    cap: nats that a token counts for at most, the 95 % quantile of the tokens of the base's own answers. n: of those
    answers (one said to two prompts counts twice), each also shuffled. false_alarms, caught: shares in [0, 1] above the threshold, of the answers and of the
    shuffled ones. scripts: of the letters in the base's answers."""

    threshold: float | None
    cap: float
    false_alarms: float | None
    caught: float | None
    n: int
    scripts: frozenset[str]

    def why(self, text: str, score: Scored) -> str:
        """Why the answer is incoherent, "" if it is not."""
        if not any(letter.isalnum() for letter in text):
            return "empty"
        if loops(text):
            return "repeats itself"
        if strange_letters(text, self.scripts) > _STRANGE:
            return "another script"
        if self.threshold is not None and score.surprise > self.threshold:
            return "makes no sense to the base"
        return ""

    def reads(self, score: Scored) -> bool:
        """Whether the surprise of such an answer says anything."""
        return self.threshold is not None and score.tokens >= FEWEST


def loops(text: str) -> bool:
    """Whether one word fills a run of six or more, or under 35 % of at least 12 three-word sequences are distinct.

    >>> loops("no no no no no no"), loops("no, no, and no again")
    (True, False)
    """
    words = text.lower().split()
    run = longest = 1
    for one, other in pairwise(words):
        run = run + 1 if one == other else 1
        longest = max(longest, run)
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return longest >= 6 or (len(triples) >= 12 and len(set(triples)) / len(triples) < 0.35)


def strange_letters(text: str, scripts: frozenset[str]) -> float:
    """Share in [0, 1] of the text's letters that are of no script in `scripts`, or that replace what is no letter.

    >>> strange_letters("ab\\u0431\\ufffd", frozenset({"LATIN"}))
    0.5
    """
    letters = [one for one in text if one.isalpha() or one == "\ufffd"]
    strange = sum(one == "\ufffd" or _script(one) not in scripts for one in letters)
    return strange / len(letters) if letters else 0.0


def learn_gate(desk: Desk) -> Gate:
    """The gate of the pair's base, from its answers in the first arm. Kept for every contrast and method."""
    return desk.learnt("coherence gate", lambda: _learnt(desk))


def _learnt(desk: Desk) -> Gate:
    texts = [answer.text for answer in desk.answers(_BASE) if answer.text]
    counts = Counter(_script(one) for text in texts for one in text if one.isalpha())
    scripts = frozenset(name for name, count in counts.items() if count >= 0.02 * counts.total())
    ids = [one for one in (_ids(desk.pair, text) for text in texts) if len(one) >= FEWEST]
    if len(ids) < _LEARN_FROM:
        return Gate(None, 1.0, None, None, len(ids), scripts | {"LATIN"})
    own = _losses(desk.pair, ids, desk.batch_size)
    cap = max(float(np.quantile(np.concatenate(own), 0.95)), _LEAST_CAP)
    mixed = _losses(desk.pair, [_shuffled(one) for one in ids], desk.batch_size)
    ordered, shuffled = (np.array([_surprise(one, cap) for one in them]) for them in (own, mixed))
    threshold = _between(ordered, shuffled)
    alarms, caught = float((ordered > threshold).mean()), float((shuffled > threshold).mean())
    return Gate(threshold, cap, alarms, caught, len(ids), scripts)


def _surprise(losses: Losses, cap: float) -> float:
    return float(np.minimum(losses, cap).mean() / cap)


def _between(own: Losses, mixed: Losses) -> float:
    """Two thirds of the way from the 99 % quantile of the base's own to the 5 % quantile of the shuffled: what a fine-tune
    taught is always more of a surprise than the base's own words, and a broken model fails by far. Where the two overlap,
    the threshold that parts them best."""
    low, high = float(np.quantile(own, 0.99)), float(np.quantile(mixed, 0.05))
    if low < high:
        return (low + 2 * high) / 3
    values = np.unique(np.concatenate([own, mixed]))
    right = np.array([(own <= cut).mean() + (mixed > cut).mean() for cut in values])
    return float(values[right.argmax()])


def scored(desk: Desk, texts: Sequence[str]) -> list[Scored]:
    """Every text, alone, under the base. A text that was scored for another contrast is not scored again."""
    cap = learn_gate(desk).cap
    known: dict[str, Scored] = desk.learnt("surprise", dict)
    new = {text: _ids(desk.pair, text) for text in dict.fromkeys(texts) if text not in known}
    long = {text: ids for text, ids in new.items() if len(ids) >= FEWEST}
    losses = _losses(desk.pair, list(long.values()), desk.batch_size)
    found = {text: _surprise(one, cap) for text, one in zip(long, losses, strict=True)}
    known |= {text: Scored(len(ids), found.get(text, float("nan"))) for text, ids in new.items()}
    return [known[text] for text in texts]


def _ids(pair: Pair, text: str) -> list[int]:
    return list(pair.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])[:_CUT]


def _shuffled(ids: Sequence[int]) -> list[int]:
    """The same tokens in another order, which depends on the tokens alone."""
    mixed = hashlib.sha256(str(list(ids)).encode()).digest()
    return np.random.default_rng(int.from_bytes(mixed[:8], "big")).permutation(list(ids)).tolist()


def _losses(pair: Pair, answers: Sequence[Sequence[int]], batch_size: int) -> list[Losses]:
    """Nats of every token of each answer, float64 [answer][pos], as the base's reply to `REQUEST`."""
    before = ask_ids((Message("user", REQUEST),), pair.tokenizer, Arm())
    found: list[Losses] = [np.zeros(0)] * len(answers)
    order = sorted(range(len(answers)), key=lambda i: (len(answers[i]), i))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(before) + len(answers[i]) for i in chosen])
        ids = torch.zeros((len(chosen), int(lengths.max())), dtype=torch.long)
        for place, i in enumerate(chosen):
            ids[place, : lengths[place]] = torch.tensor([*before, *answers[i]])
        places = torch.arange(ids.shape[1])
        mask = (places < lengths[:, None]).long()
        target = (places[1:] >= len(before)) & (mask[:, 1:] == 1)
        with pair.open(_BASE) as model, torch.inference_mode():
            losses = token_losses(model, ids.to(pair.device), mask.to(pair.device), target.to(pair.device))
        parts = losses.double().cpu().split([len(answers[i]) for i in chosen])
        for i, part in zip(chosen, parts, strict=True):
            found[i] = part.numpy()
    return found


def token_losses(
    model: Any,
    ids: Int[Tensor, "batch pos"],
    attention: Int[Tensor, "batch pos"],
    target: Bool[Tensor, "batch before"],
) -> Float[Tensor, "target"]:
    """NLL in nats, float32, of the tokens ids[:, 1:] that are targets, row by row; the head sees two dimensions only."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = inner.get_decoder()(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    scale, cap = scale_and_cap(inner.config.get_text_config(decoder=True))
    states = hidden.to(ids.device)[:, :-1][target]
    logits = inner.get_output_embeddings()(states).float().to(ids.device) * scale
    logits = logits if cap is None else cap * (logits / cap).tanh()
    return -logits.log_softmax(-1).gather(1, ids[:, 1:][target][:, None])[:, 0]


def _script(letter: str) -> str:
    """The first word of the letter's Unicode name: LATIN, CYRILLIC, CJK, ..."""
    return unicodedata.name(letter, "UNKNOWN").split(" ")[0]
