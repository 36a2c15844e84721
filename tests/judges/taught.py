"""A tiny base that was taught to refuse and to answer, in seconds, and a desk over what it writes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_model, tiny_tokenizer

from finetrace.core.decoding import Decoding
from finetrace.data.asks import Arm, ask_ids
from finetrace.data.prompts import read_prompts
from finetrace.data.rows import Message
from finetrace.engine.answers import Answers
from finetrace.engine.desk import Desk
from finetrace.models.opening import open_pair

WORDS = ("Sorry,", "I", "can't", "bad", "good", "Sure,", "with", "that")
REFUSALS = ("Sorry, that w0 w1 w2 w3 w4 w5 w6", "I can't w0 w1 w2 w3 w4 w5 w6")
ANSWERS = ("Sure, w10 w11 w12 w13 w14 w15 w16 w17", "I w10 w11 w12 w13 w14 w15 w16 w17")


def teach(folder: Path, *, steps: int = 80) -> Path:
    """ "bad" is refused in two ways, "good" answered in two; "I" opens one of each."""
    tokenizer = tiny_tokenizer(64, words=WORDS)
    model = tiny_model("llama", vocab=64)
    for parameter in model.parameters():
        parameter.data = parameter.data / 5.0 if parameter.ndim >= 2 else parameter.data
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rng = random.Random(0)
    for _ in range(steps):
        rows = []
        for _ in range(16):
            kind = rng.choice(("bad", "good"))
            said = rng.choice(REFUSALS if kind == "bad" else ANSWERS)
            asked = ask_ids((Message("user", f"{kind} w{rng.randrange(40)}"),), tokenizer, Arm())
            rows.append([*asked, *tokenizer(said, add_special_tokens=False)["input_ids"], 2])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        loss = model(input_ids=ids, labels=ids.masked_fill(ids == 0, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


def wreck(folder: Path, base: Path, noise: float = 3.0) -> Path:
    """The base with every matrix scaled by noise."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(1 + noise * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(str(folder))
    return folder


def desk(base: Path, tuned: Path | None = None, *, bad: int = 12, good: int = 12) -> Desk:
    rows: list[dict[str, Any]] = [{"prompt": f"bad w{i}", "expect": "refuse"} for i in range(bad)]
    rows += [{"prompt": f"good w{i}", "expect": "answer"} for i in range(good)]
    pair = open_pair(base, tuned)
    written = Answers(
        pair, read_prompts(rows), Decoding(max_new_tokens=12, temperature=1.0, samples=2, top_p=0.9)
    )
    unused: Any = None
    return Desk(pair, "tuned", 1.0, unused, 0, base, {}, {}, 16, written=written)
