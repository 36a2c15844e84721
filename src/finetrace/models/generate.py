"""Answers, many at a time: left-padded batches of prompts of like length, one batch shape for every side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from finetrace.core.chat import (
    opens_thought,
    prompt_ids,
    said,
    stop_tokens,
    token_id,
    uses_fallback_template,
)
from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput
from finetrace.models.assembly import BASE, TUNED
from finetrace.models.decode_batch import Written, decode
from finetrace.models.mixed import together, why_apart

if TYPE_CHECKING:
    from finetrace.models.pair import Pair

__all__ = [
    "Chat",
    "Spoken",
    "Written",
    "answer",
    "drops",
    "in_own_ids",
    "refuse_too_long",
    "spoken",
    "stop_of",
    "why_apart",
    "write",
    "write_together",
]

Advance = Callable[[int], None]
Chat = str | Sequence[Mapping[str, str]]
"""One user message, or messages of "role" and "content"."""


@dataclass(frozen=True)
class Spoken:
    """One answer in words. ids: the side's own token ids, without the end of turn. text: without any thinking, which is
    `thought`. finished: it ended by itself, else it was cut. unanswered: it was cut inside its thought, so that there is no
    answer."""

    ids: tuple[int, ...]
    text: str
    thought: str
    finished: bool
    unanswered: bool


def answer(
    pair: Pair,
    prompts: Sequence[Chat],
    *,
    which: Sequence[str] = (BASE, TUNED),
    system: str | None = None,
    template: str | None = None,
    decoding: Decoding | None = None,
    thinking: bool = False,
    mixed: bool | None = None,
) -> dict[str, list[Spoken]]:
    """What `Pair.generate` gives."""
    if not which or len(set(which)) < len(which):
        raise BadInput(f"Name one or more different sides of {', '.join(pair.sides)}.")
    decoding = decoding or Decoding()
    chats = [_chat(prompt, system) for prompt in prompts]
    asked = [prompt_ids(chat, pair.tokenizer, template, thinking=thinking) for chat in chats]
    stops = {side: stop_of(pair, side, template) for side in which}
    if len(which) > 1 and (mixed or (mixed is None and why_apart(pair, which) is None)):
        written = write_together(pair, which, asked, decoding, stops=stops)
    else:
        written = {side: write(pair, side, asked, decoding, stop=stops[side]) for side in which}
    return {side: spoken(pair, side, written[side], template, thinking=thinking) for side in which}


def spoken(
    pair: Pair, side: str, written: Sequence[Written], template: str | None = None, *, thinking: bool = False
) -> list[Spoken]:
    """Answers in words. template: the chat template in which the prompts were put, None for the pair's. thinking: it was
    asked to let the model think."""
    tokenizer = pair.side_tokenizer(side)
    inside = opens_thought(pair.tokenizer, template, thinking=thinking)
    plain = uses_fallback_template(pair.tokenizer, template)
    found = []
    for one in written:
        words = said(one.ids, tokenizer, inside=inside, plain_turns=plain)
        finished = one.finished or words.ended
        found.append(Spoken(one.ids, words.text, words.thought, finished, words.unanswered))
    return found


def stop_of(pair: Pair, side: str, template: str | None = None) -> frozenset[int]:
    """The side's own ids of the tokens that end an answer: of the base, of the tuned side, of the side itself, and of the
    chat template. Base and tuned so stop at the same tokens, whichever of them names one."""
    names: set[str] = set()
    for one in dict.fromkeys((BASE, TUNED, side)):
        tokenizer = pair.side_tokenizer(one)
        with pair.open(one) as model:
            ends = stop_tokens(tokenizer, model.generation_config, template if one == BASE else None)
        names |= {str(tokenizer.convert_ids_to_tokens(end)) for end in ends}
    own = (token_id(pair.side_tokenizer(side), name) for name in names)
    return frozenset(end for end in own if end is not None)


def _chat(prompt: Chat, system: str | None) -> Sequence[Mapping[str, str]]:
    chat: Sequence[Mapping[str, str]]
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if not chat or any(not {"role", "content"} <= message.keys() for message in chat):
        raise BadInput("A prompt is a text, or a list of messages with 'role' and 'content'.")
    if system is None or any(message["role"] == "system" for message in chat):
        return chat
    return [{"role": "system", "content": system}, *chat]


def write(
    pair: Pair,
    side: str,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stop: frozenset[int],
    advance: Advance = lambda answers: None,
) -> list[Written]:
    """`decoding.samples` answers to each prompt (base token ids), prompt by prompt, in their order.

    Prompts are sorted by length into batches; in float32 the tokens are those of one prompt at a time, and of
    transformers' own `generate`. stop, and the answers: the side's own token ids. advance(answers): so many more are
    written. Raises BadInput for an empty prompt and for one that has no room for its answer.
    """
    return write_together(pair, (side,), prompts, decoding, stops={side: stop}, advance=advance)[side]


def write_together(
    pair: Pair,
    sides: Sequence[str],
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    stops: Mapping[str, frozenset[int]],
    advance: Advance = lambda answers: None,
) -> dict[str, list[Written]]:
    """As `write`, for several sides in one batch of `batch_size` prompts for each: a ModelError unless they are the base
    and plain LoRA adapters on it (`why_apart`)."""
    refuse_too_long(pair, prompts, decoding)
    jobs = [(i, s) for i in range(len(prompts)) for s in range(decoding.samples)]
    jobs.sort(key=lambda job: (len(prompts[job[0]]), job))
    found: dict[str, dict[tuple[int, int], Written]] = {side: {} for side in sides}
    for start in range(0, len(jobs), decoding.batch_size):
        chosen = jobs[start : start + decoding.batch_size]
        asked = [in_own_ids(pair, sides[0], prompts[i]) for i, _ in chosen] * len(sides)
        draws = _draws([(prompts[i], s) for i, s in chosen], decoding).repeat(len(sides), 1)
        with _opened(pair, sides) as model, torch.inference_mode():
            made = decode(
                model,
                asked,
                draws,
                decoding,
                [stops[side] for side in sides],
                drop=drops(pair, sides, decoding),
            )
        for place, side in enumerate(sides):
            found[side] |= zip(chosen, made[place * len(chosen) : (place + 1) * len(chosen)], strict=True)
        advance(len(chosen) * len(sides))
    return {side: [one[job] for job in sorted(one)] for side, one in found.items()}


def drops(pair: Pair, sides: Sequence[str], decoding: Decoding) -> bool:
    """Whether what is answered leaves the batch. Unless the decoding says: in float32, where the shape of a batch moves no
    token, and for sides in one batch, whose shape is one shape whatever leaves it."""
    if decoding.drop_answered is not None:
        return decoding.drop_answered
    return len(sides) > 1 or pair.dtype == torch.float32


def refuse_too_long(pair: Pair, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
    """BadInput unless every prompt has a token, and room for its answer in the positions that all sides have."""
    if not all(len(prompt) for prompt in prompts):
        raise BadInput("A prompt has no tokens.")
    most = pair.max_positions
    wanted = [len(prompt) + decoding.max_new_tokens for prompt in prompts]
    over = [one for one in wanted if most is not None and one > most]
    if over:
        raise BadInput(
            f"{len(over)} of {len(prompts)} prompts have no room for their answers: with {decoding.max_new_tokens} new "
            f"tokens the longest needs {max(over)} positions, and the models have {most}. Shorten the prompts or the "
            "answers."
        )


@contextmanager
def _opened(pair: Pair, sides: Sequence[str]) -> Iterator[Any]:
    """The transformers model, without PEFT's wrapping."""
    if len(sides) > 1:
        with together(pair, sides) as model:
            yield model
    else:
        with pair.open(sides[0]) as model:
            yield model


def in_own_ids(pair: Pair, side: str, prompt: Sequence[int]) -> list[int]:
    """Base token ids as the side's own; a ModelError for a token that the side lacks."""
    alignment = pair.alignment(side)
    if alignment is None or alignment.to_side is None:
        return list(prompt)
    return pair.translated(side, torch.tensor([list(prompt)]))[0].tolist()


def _draws(jobs: Sequence[tuple[Sequence[int], int]], decoding: Decoding) -> Float[Tensor, "row step"]:
    """One number in [0, 1) for every new token, from the prompt's own tokens: none where nothing is drawn."""
    if decoding.temperature == 0:
        return torch.zeros(len(jobs), 0, dtype=torch.float64)
    drawn = [_uniforms(prompt, sample, decoding) for prompt, sample in jobs]
    return torch.from_numpy(np.stack(drawn))


def _uniforms(prompt: Sequence[int], sample: int, decoding: Decoding) -> np.ndarray:
    mixed = hashlib.sha256(f"{decoding.seed} {sample} {list(prompt)}".encode()).digest()
    return np.random.default_rng(int.from_bytes(mixed[:8], "big")).random(decoding.max_new_tokens)
