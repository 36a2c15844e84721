"""What an audit would cost, from the checkpoints' headers and one short matrix product: no weights are loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetrace.api.audit import rows_for
from finetrace.api.calibration import makers, sets_for
from finetrace.api.names import is_bundled
from finetrace.api.nulls import BATCH, COUNT, STEPS
from finetrace.api.opening import open_request
from finetrace.api.plan import null_names
from finetrace.api.prompts import arms_for
from finetrace.api.request import Chosen, Request
from finetrace.api.stored import Size, size_of
from finetrace.data import build_corpus, padded_tokens
from finetrace.data.asks import ask_ids
from finetrace.data.prompts import Prompt
from finetrace.engine.head import chunk_tokens
from finetrace.models import Pair
from finetrace.models.files import float32_bytes
from finetrace.models.tokens import load_tokenizer

if TYPE_CHECKING:
    from finetrace.judges.cost import Spent

# Float32 matrices of one chunk of logits that are alive at once, and what other kernels cost beside the products.
_CHUNK_COPIES, OVERHEAD = 10, 1.6
# A token that is written costs about so many that are read: its products are of few rows.
WRITTEN = 4
# Of the nulls that an audit makes: a step is three forwards, and a neutral sample has some 60 tokens.
TRAINING = 3 * COUNT * STEPS * BATCH * 60
_CHARACTERS = 4  # a token of English, about


@dataclass(frozen=True)
class Cost:
    """slices: tokens of each. passes: sides that read them. own: lines on methods that run by themselves after the pass.
    seconds: wall time, to about a factor of 2. bytes: peak. answers: lines on the answers that are written, and on
    what judges are asked about them; judged: the latter by judge. results: those that land on the shelf. disk: their size
    at most, in bytes, to about a factor of 3. stored: hidden states that are kept on disk, where that was asked for; storing: seconds
    of that."""

    slices: dict[str, int]
    tokens: int
    padded: int
    passes: int
    seconds: float
    bytes: int
    weights: int
    device: str
    own: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    judged: Mapping[str, Spent] = field(default_factory=dict)
    results: int = 0
    disk: int = 0
    stored: Size | None = None
    storing: float = 0.0


def estimate(request: Request, methods: Sequence[Chosen], prompts: Sequence[Prompt] = ()) -> Cost:
    """prompts: what the methods that ask would ask."""
    pair = open_request(replace(request, nulls=()) if request.trains_nulls else request)
    corpus = build_corpus(
        rows_for(request, held_out=request.trains_nulls),
        load_tokenizer(request.base, Path(pair.plan.tokenizer or pair.source("base").folder)),
        system=request.system,
        chat_template=request.chat_template,
        max_tokens=request.max_tokens,
        context=pair.max_positions,
        thinking=request.thinking,
    )
    nulls = COUNT if request.trains_nulls else len(null_names(pair))
    passes = passes_of(request, methods, nulls)
    asked = _asked(request, pair, prompts)
    answers = _answers(request, methods, asked, nulls)
    training = TRAINING if request.trains_nulls else 0
    stored = size_of(request, methods, pair, corpus, nulls)
    padded = padded_tokens(corpus, request.shape.batch_size, request.shape.shard_tokens)
    size = float32_bytes(pair.source("base")) // 4
    copies = sum(pair.kind(side) == "full" for side in pair.sides)
    width = torch.tensor([], dtype=pair.dtype).element_size()
    weights = size * width * (1 + copies)
    vocab = pair.config("base").vocab_size
    judged = judged_by(request, prompts) | labelled_by(request, methods)
    results = results_of(request, methods, nulls)
    sizes = Sizes(sum(asked), padded, corpus.n_tokens, size)
    own = [_own(request, pair, one, nulls, sizes) for one in methods if one.card.runs]
    storing = padded * 2 * stored.sides if stored is not None else 0
    rate = OVERHEAD * 2 * size / flops(pair.dtype, pair.device, pair.d_model)
    hidden = request.shape.batch_size * corpus.longest * pair.d_model * 4 * (passes + 8)
    return Cost(
        slices={s.name: s.tokens for s in corpus.summary()},
        tokens=corpus.n_tokens,
        padded=padded,
        passes=passes,
        seconds=rate * (padded * passes + storing + training + sum(tokens for _, tokens in (*own, *answers))),
        bytes=weights + hidden + _CHUNK_COPIES * 4 * vocab * chunk_tokens(vocab),
        weights=weights,
        device=str(pair.device),
        own=tuple(line for line, _ in own),
        answers=(*(line for line, _ in answers), *judge_lines(request, judged)),
        judged=judged,
        results=results,
        disk=disk_of(request, methods, results, (vocab, len(corpus.slices))),
        stored=stored,
        storing=rate * storing,
    )


# Of a result: bootstrap replicates and pages; and of one that reads logits or hidden states what it keeps of each token of
# the vocabulary on each slice (as measured on diff_mining, which keeps most).
_RESULT, _TOKEN_OF_VOCABULARY = 1 << 19, 45


def passes_of(request: Request, methods: Sequence[Chosen], nulls: int) -> int:
    """Forwards of the texts: of the base, the base again, the tuned side, each null, and each null at the pair's dose."""
    doses = 2 if request.dose and request.tuned is not None else 1
    return 3 + nulls * doses if any(one.card.observes for one in methods) else 0


def results_of(request: Request, methods: Sequence[Chosen], nulls: int) -> int:
    """How many results land on the shelf at most: each method's on the pair, the base itself, the nulls and their doses."""
    return len(methods) * (2 + nulls * (2 if request.dose and request.tuned is not None else 1))


def disk_of(request: Request, methods: Sequence[Chosen], results: int, size: tuple[int, int]) -> int:
    """Bytes of so many results, at most. size: tokens of the vocabulary, and slices."""
    vocab, slices = size
    reading = sum(one.card.observes for one in methods) / max(1, len(methods))
    return int(results * (_RESULT + reading * _TOKEN_OF_VOCABULARY * vocab * (slices + 1)))


def _asked(request: Request, pair: Pair, prompts: Sequence[Prompt]) -> list[int]:
    """How long every prompt is in tokens, in every arm."""
    if not prompts:
        return []
    tokenizer = load_tokenizer(request.base, Path(pair.plan.tokenizer or pair.source("base").folder))
    arms = arms_for(request, pair)
    return [len(ask_ids(prompt.messages, tokenizer, arm)) for arm in arms for prompt in prompts]


def _answers(
    request: Request, methods: Sequence[Chosen], asked: Sequence[int], nulls: int
) -> list[tuple[str, int]]:
    """The answers that are written, once for all methods: in words, and as tokens that go forwards at most."""
    needs = [one.needs for one in methods if one.needs.answers]
    if not needs or not asked:
        return []
    sides = 2 + int(any(one.floor for one in needs)) + (nulls if any(one.nulls for one in needs) else 0)
    each, decoding = request.written.samples, request.written
    written = len(asked) * each * sides
    line = f"{written:,} answers ({len(asked)} prompts, {sides} sides), of at most {decoding.max_new_tokens} tokens"
    read = sum(asked) * each * sides
    return [(line, read + WRITTEN * written * decoding.max_new_tokens)]


def judged_by(request: Request, prompts: Sequence[Prompt]) -> dict[str, Spent]:
    """What every judge is asked at most: both sides' answers to what is to be refused."""
    from finetrace.api.judging import cost_of

    mine = [prompt for prompt in prompts if prompt.expect == "refuse"]
    if not request.judges or not mine:
        return {}
    characters = sum(len(p.text) for p in mine) // len(mine) + _CHARACTERS * request.written.max_new_tokens
    return cost_of(request, 2 * len(mine), characters)


def labelled_by(request: Request, methods: Sequence[Chosen]) -> dict[str, Spent]:
    """What every judge of labels is asked at most: of the pair alone."""
    from finetrace.api.judging import cost_of_labels

    return cost_of_labels(request, sum(one.needs.labels for one in methods))


def judge_lines(request: Request, judged: Mapping[str, Spent]) -> list[str]:
    from finetrace.judges.cost import Price

    price = None if request.judge_price is None else Price(*request.judge_price)
    return [f"the judge {name}: {spent.words(price)}" for name, spent in judged.items()]


@dataclass(frozen=True)
class Sizes:
    """Tokens of all prompts, of the texts with padding, and without; parameters of a model."""

    asked: int
    padded: int
    tokens: int
    parameters: int


def _again(chosen: Chosen, pair: Pair, contrasts: int, sizes: Sizes) -> tuple[str, int]:
    """Of a method that reads the texts once more: what it trains counts as the tokens whose forwards cost as much."""
    read = 2 * sizes.padded * contrasts
    work = chosen.card.work
    trained = work(chosen.config, sizes.tokens, pair.d_model) * contrasts / sizes.parameters if work else 0
    line = f"{chosen.card.name}: reads the texts again on {contrasts} contrasts, at least {read:,} tokens forwards"
    if trained:
        line += f", and trains on each, which costs about as much as {trained:,.0f} tokens"
    return line, read + round(trained)


def _own(request: Request, pair: Pair, chosen: Chosen, nulls: int, sizes: Sizes) -> tuple[str, int]:
    """What a method's own runs read, in words, and as tokens that go forwards."""
    asked, needs = sizes.asked, chosen.needs
    doses = 2 if request.dose and needs.dosed else 1
    contrasts = 1 + int(needs.floor) + (nulls * doses if needs.nulls else 0)
    sets = sets_for(request.calibration, [needs], bundled=is_bundled(request.base), seed=request.seed)
    if not sets and needs.prompts:
        tokens = asked * (1 + contrasts)
        return (
            f"{chosen.card.name}: asks {contrasts} fine-tunes and the base; {tokens:,} tokens forwards",
            tokens,
        )
    if not sets and needs.steps:
        return _again(chosen, pair, contrasts, sizes)
    if not sets:
        return f"{chosen.card.name}: reads the weights of {contrasts} fine-tunes", 0
    tokenizer = load_tokenizer(request.base, Path(pair.plan.tokenizer or pair.source("base").folder))
    made = makers(sets, tokenizer, request.max_tokens)
    tokens = sum(len(example) for make in made.values() for example in make()) * needs.passes * contrasts
    what = ", ".join(f"{len(rows)} of {name}" for name, rows in sets.items())
    return f"{chosen.card.name}: {contrasts} contrasts, chats: {what}; {tokens:,} tokens forwards", tokens


@cache
def flops(dtype: torch.dtype, device: torch.device, d_model: int) -> float:
    """Products a second at about a model's own shapes."""
    side = min(2048, max(256, d_model))
    a = torch.ones(512, side, dtype=dtype, device=device)
    b = torch.ones(side, side, dtype=dtype, device=device)
    seconds = min(_timed(a, b) for _ in range(3))
    return 2 * 512 * side * side * 8 / seconds


def _timed(a: torch.Tensor, b: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in range(8):
        c = a @ b
    float(c[0, 0])  # waits for the device
    return max(time.perf_counter() - began, 1e-6)
