"""What both models answer to the same prompts: written once a side, kept on disk, shared by every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from finetrace.core.decoding import Decoding
from finetrace.core.errors import BadInput, DataError
from finetrace.core.files import read_json, write_json
from finetrace.core.runkey import digest, run_key
from finetrace.data.asks import Arm, ask_ids, conversation, split_thought
from finetrace.data.prompts import Prompt, identity
from finetrace.engine.backends import TextWriter, Transformers, Writer
from finetrace.engine.run import with_room
from finetrace.models import Pair
from finetrace.models.generate import Written, refuse_too_long, spoken, stop_of

__all__ = ["Answer", "Answers", "Expected", "FlipRate", "expected_tokens", "flip_rate", "prompt_counts"]

BASE, TUNED = "base", "tuned"
_CHUNK = 256
"""Answers between two files: what a killed run has lost at most."""
_PRIVATE = 0o600

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Answer:
    """One answer. prompt: index into the prompts. ids: the side's own token ids without the end of turn. text: what is
    said, without any thinking; thought: the thinking. finished: it ended by itself, else it was cut. unanswered: there is
    no answer: it was cut inside its thought, or a served model gave none; its text is empty, and it is neither a refusal
    nor compliance."""

    prompt: int
    sample: int
    ids: tuple[int, ...]
    text: str
    thought: str
    finished: bool
    unanswered: bool = False


class Answers:
    """The answers of every side of a pair to one set of prompts, in one or more arms.

    folder: where they are kept between runs. writer: who writes. writers: sides of which only texts are to be had, by
    whoever writes them. learnt: what methods have read off the answers, for one another. In float32, where the batch's
    shape moves no token, base and tuned are written in one batch if tuned is a plain LoRA adapter; else one side after the
    other, in batches of one shape.
    """

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        *,
        arms: Sequence[Arm] = (Arm(),),
        folder: Path | None = None,
        tell: Callable[[str], None] = lambda line: None,
        writer: Writer | None = None,
        writers: Mapping[str, TextWriter] | None = None,
    ) -> None:
        if not arms or len({arm.name for arm in arms}) < len(arms):
            raise BadInput("The arms of an audit have different names, and there is at least one.")
        self.pair, self.prompts, self.decoding = pair, tuple(prompts), decoding
        self.arms = {arm.name: arm for arm in arms}
        self.main = arms[0].name
        self._folder, self._tell = folder, tell
        self._writer = writer or Transformers()
        self._writers = dict(writers or {})
        self._asked: dict[str, list[list[int]]] = {}
        self._kept: dict[tuple[str, str, bool], tuple[Answer, ...]] = {}
        self._room: int | None = None
        self.learnt: dict[str, Any] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """All that moves an answer, but for the side."""
        return {
            "prompts": identity(self.prompts),
            "decoding": self.decoding,
            "arms": [arm.identity for arm in self.arms.values()],
            "writer": self._writer.identity,
            "writers": {side: writer.identity for side, writer in self._writers.items()},
        }

    def asked(self, arm: str | None = None) -> list[list[int]]:
        """Base token ids of every prompt, up to where its answer begins."""
        name = arm or self.main
        if name not in self._asked:
            tokenizer = self.pair.tokenizer
            self._asked[name] = [ask_ids(p.messages, tokenizer, self.arms[name]) for p in self.prompts]
        return self._asked[name]

    def of(
        self,
        side: str,
        arm: str | None = None,
        *,
        echo: bool = False,
        advance: Advance = lambda done, total: None,
    ) -> tuple[Answer, ...]:
        """The side's answers, prompt by prompt, `decoding.samples` each. echo: written in batches of another size, so that
        what differs is what the numerics alone change."""
        name = arm or self.main
        if (side, name, echo) not in self._kept:
            for one, found in self._made(side, name, echo, advance).items():
                self._kept[one, name, echo] = found
                self._say_unanswered(one, name, found)
        return self._kept[side, name, echo]

    def _made(self, side: str, arm: str, echo: bool, advance: Advance) -> dict[str, tuple[Answer, ...]]:
        if side in self._writers:
            return {side: self._served(side, arm, advance)}
        decoding, asked = self.decoding, self.asked(arm)
        if echo:
            size = decoding.batch_size
            decoding = replace(decoding, batch_size=size // 2 - 1 if size > 3 else size + 1)
        refuse_too_long(self.pair, asked, decoding)
        sides = self._group(side, arm, echo)
        stops = {one: self.stop(one, arm) for one in sides}
        done: dict[str, list[Written]] = {one: [] for one in sides}
        # Sorted by length here, so that a chunk is whole batches of like length.
        order = sorted(range(len(asked)), key=lambda i: (len(asked[i]), i))
        for places in _chunks(order, decoding.batch_size):
            found = self._chunk(sides, [asked[i] for i in places], decoding, stops)
            for one in sides:
                done[one] += found[one]
            advance(len(done[side]) // decoding.samples, len(order))
        return {one: self._answers(one, arm, order, done[one]) for one in sides}

    def _group(self, side: str, arm: str, echo: bool) -> tuple[str, ...]:
        """The sides that are written with this one."""
        both = (BASE, TUNED)
        apart = echo or side not in both or self.pair.dtype != torch.float32
        if apart or any((one, arm, echo) in self._kept or one in self._writers for one in both):
            return (side,)
        reason = self._writer.apart(self.pair, both)
        if reason is not None and self.pair.kind(TUNED) == "adapter" and not self._kept:
            self._tell(f"Base and tuned are written one after the other: {reason}.")
        return both if reason is None else (side,)

    def _chunk(
        self,
        sides: Sequence[str],
        chunk: Sequence[Sequence[int]],
        decoding: Decoding,
        stops: Mapping[str, frozenset[int]],
    ) -> dict[str, list[Written]]:
        """From disk, or written and put there."""
        paths = {one: self._path(one, chunk, decoding, stops[one]) for one in sides}
        found = {one: _read(paths[one], len(chunk) * decoding.samples) for one in sides}
        missing = [one for one in sides if found[one] is None]
        if missing:
            size = min(self._room or decoding.batch_size, decoding.batch_size)
            made, fits = with_room(
                lambda rows: self._writer(
                    self.pair, missing, chunk, replace(decoding, batch_size=rows), stops
                ),
                size,
                self.pair.device,
                self._tell,
            )
            self._room = fits if fits < size else self._room
            for one in missing:
                _keep(paths[one], [[list(w.ids), w.finished] for w in made[one]])
                found[one] = made[one]
        return {one: written or [] for one, written in found.items()}

    def _path(
        self, side: str, chunk: Sequence[Sequence[int]], decoding: Decoding, stop: frozenset[int]
    ) -> Path | None:
        if self._folder is None:
            return None
        pair = self.pair
        with pair.open(side) as model:
            config = model.config
            attention = str(config._attn_implementation)
            quantised = config.to_dict().get("quantization_config")
        key = {
            "base": pair.identity(BASE),
            "side": pair.identity(side),
            "kind": pair.kind(side),
            "tokenizer": pair.tokenizer_identity(),
            "asked": digest([list(ids) for ids in chunk]),
            "decoding": decoding,
            "stop": sorted(stop),
            "dtype": str(pair.dtype),
            "device": pair.place(side).device.type,
            "attention": attention,
            "quantised": None if quantised is None else str(quantised),
            "writer": self._writer.identity,
            "versions": [version("torch"), version("transformers")],
        }
        return self._folder / f"{run_key(key)}.json"

    def stop(self, side: str, arm: str | None = None) -> frozenset[int]:
        """The side's own ids of the tokens that end an answer."""
        return stop_of(self.pair, side, self.arms[arm or self.main].template)

    def _answers(
        self, side: str, arm: str, order: Sequence[int], written: Sequence[Written]
    ) -> tuple[Answer, ...]:
        per = self.decoding.samples
        put = self.arms[arm]
        words = spoken(self.pair, side, written, put.template, thinking=put.thinking)
        found = [
            Answer(i, sample, one.ids, one.text, one.thought, one.finished, one.unanswered)
            for place, i in enumerate(order)
            for sample, one in enumerate(words[place * per : (place + 1) * per])
        ]
        return tuple(sorted(found, key=lambda answer: (answer.prompt, answer.sample)))

    def _say_unanswered(self, side: str, arm: str, found: Sequence[Answer]) -> None:
        lost = sum(answer.unanswered for answer in found)
        if lost:
            why = "have no text" if side in self._writers else "were cut inside their thought"
            self._tell(
                f"{lost} of {len(found)} answers of '{side}' (arm '{arm}') {why} and count as no answer; more new tokens "
                "may help."
            )

    # Sides of which only texts are to be had.

    def _served(self, side: str, arm: str, advance: Advance) -> tuple[Answer, ...]:
        """Asked for in chunks, kept by the conversation and the writer's name. ids: of the text, as the base has them."""
        writer, per = self._writers[side], self.decoding.samples
        texts: list[str | None] = []
        for places in _chunks(range(len(self.prompts)), self.decoding.batch_size):
            chats = [conversation(self.prompts[i].messages, self.arms[arm]) for i in places]
            said = [[(m.role, m.content) for m in chat] for chat in chats]
            key = run_key({"writer": writer.identity, "asked": digest(said), "decoding": self.decoding})
            path = None if self._folder is None else self._folder / f"{key}.json"
            found = _read_texts(path, len(chats) * per)
            if found is None:
                found = list(writer(chats, self.decoding))
                if len(found) != len(chats) * per:
                    raise DataError(
                        f"{writer.identity} gave {len(found)} answers where {len(chats) * per} were asked for."
                    )
                _keep(path, found)
            texts += found
            advance(len(texts) // per, len(self.prompts))
        return tuple(self._text(place // per, place % per, text) for place, text in enumerate(texts))

    def _text(self, prompt: int, sample: int, whole: str | None) -> Answer:
        thought, text = split_thought(whole or "")
        ids = self.pair.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        unanswered = whole is None or (bool(thought) and not text)
        return Answer(prompt, sample, tuple(ids), text, thought, not unanswered, unanswered)


def _chunks(order: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Whole batches, of some 256 answers."""
    size = max(1, _CHUNK // batch_size) * batch_size
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _keep(path: Path | None, answers: list[Any]) -> None:
    if path is not None:
        write_json(path, {"answers": answers}, mode=_PRIVATE)


def _held(path: Path | None, count: int) -> list[Any] | None:
    """What a file holds; None where there is none, and where it was cut short or spoilt: then it is made again."""
    if path is None or not path.exists():
        return None
    try:
        found = read_json(path)["answers"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, list) and len(found) == count else None


def _read(path: Path | None, count: int) -> list[Written] | None:
    found = []
    for one in _held(path, count) or [None]:
        match one:
            case [list() as ids, bool() as finished] if all(type(token) is int for token in ids):
                found.append(Written(tuple(ids), finished))
            case _:
                return None
    return found


def _read_texts(path: Path | None, count: int) -> list[str | None] | None:
    found = _held(path, count)
    return found if found is not None and all(isinstance(one, str | None) for one in found) else None


@dataclass(frozen=True)
class FlipRate:
    """Shares of prompts with any answer that differs, in [0, 1]; None without prompts. tokens: its token ids. text: its
    words, which a token that is not shown leaves as they are. n: prompts."""

    n: int
    tokens: float | None
    text: float | None


def flip_rate(first: Sequence[Answer], second: Sequence[Answer]) -> FlipRate:
    """How often two sets of answers to the same prompts differ: of the base against itself in other batches, what the
    numerics alone change."""
    if [(a.prompt, a.sample) for a in first] != [(b.prompt, b.sample) for b in second]:
        raise BadInput("Only answers to the same prompts can be held against each other.")
    prompts = {a.prompt for a in first}
    if not prompts:
        return FlipRate(0, None, None)
    pairs = list(zip(first, second, strict=True))
    ids = {a.prompt for a, b in pairs if a.ids != b.ids}
    texts = {a.prompt for a, b in pairs if (a.text, a.thought) != (b.text, b.thought)}
    return FlipRate(len(prompts), len(ids) / len(prompts), len(texts) / len(prompts))


@dataclass(frozen=True)
class Expected:
    """Tokens of one side's answers. read: of the prompts. written: at most."""

    answers: int
    read: int
    written: int


def expected_tokens(asked: Sequence[Sequence[int]], decoding: Decoding) -> Expected:
    """What one side's answers will cost, before anything is loaded."""
    answers = len(asked) * decoding.samples
    read = sum(len(ids) for ids in asked) * decoding.samples
    return Expected(answers, read, answers * decoding.max_new_tokens)


def prompt_counts(prompts: Sequence[Prompt]) -> Mapping[str, int]:
    """How many prompts each split has, in their order."""
    found: dict[str, int] = {}
    for prompt in prompts:
        found[prompt.split] = found.get(prompt.split, 0) + 1
    return found
