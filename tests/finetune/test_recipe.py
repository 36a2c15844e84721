"""A recipe says all that is wrong with it at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetrace.finetune.recipe import Data, Drift, Lora, Probe, Scan, SetDiff, Snip, Train, TrainRecipe

GOOD = TrainRecipe(model="some/base")


def test_defaults_are_good():
    assert GOOD.problems() == []
    assert TrainRecipe().problems() == ["model is empty; give a folder or a hub id"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"lora": Lora(r=0)}, "lora.r"),
        ({"lora": Lora(alpha=0.0)}, "lora.alpha"),
        ({"lora": Lora(dropout=1.0)}, "lora.dropout"),
        ({"lora": Lora(targets=())}, "lora.targets"),
        ({"lora": Lora(targets=("all-linear", "q_proj"))}, "lora.targets"),
        ({"lora": Lora(layers=())}, "lora.layers"),
        ({"lora": Lora(layers=(1,))}, "lora.targets"),
        ({"quant": "nf5"}, "quant"),
        ({"kind": "half"}, "kind"),
        ({"kind": "full", "quant": "nf4"}, "quant"),
        ({"kind": "full", "train": Train(dtype="bfloat16")}, "train.dtype"),
        ({"data": Data(max_tokens=1)}, "data.max_tokens"),
        ({"train": Train(lr=float("nan"))}, "train.lr"),
        ({"train": Train(max_steps=0)}, "train.max_steps"),
        ({"train": Train(batch=True)}, "train.batch"),
        ({"train": Train(warmup=1.5)}, "train.warmup"),
        ({"train": Train(warmup=20, max_steps=10)}, "train.warmup"),
        ({"train": Train(schedule="step")}, "train.schedule"),
        ({"train": Train(dtype="int8")}, "train.dtype"),
        ({"train": Train(seed=-1)}, "train.seed"),
        ({"snip": Snip(top_k=1.0)}, "snip.top_k"),
        ({"set_diff": SetDiff(p=0.0)}, "set_diff.p"),
        ({"drift": Drift(every=-1)}, "drift.every"),
        ({"probe": Probe(rows=0)}, "probe.rows"),
        ({"scan": Scan(limit=2.0)}, "scan.limit"),
    ],
)
def test_each_mistake_is_named(changed, named):
    problems = replace(GOOD, **changed).problems()
    assert len(problems) == 1
    assert problems[0].startswith(named)


def test_all_mistakes_are_told_together():
    found = TrainRecipe(lora=Lora(r=0, dropout=2.0), train=Train(lr=0, schedule="x")).problems()
    assert [line.split(" ")[0] for line in found] == [
        "model",
        "lora.r",
        "lora.dropout",
        "train.lr",
        "train.schedule",
    ]
