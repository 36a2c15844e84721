"""From what was streamed to the Result."""

from __future__ import annotations

import numpy as np

from finetrace.core.estimate import Estimate
from finetrace.core.result import Columns
from finetrace.engine import Subject
from finetrace.methods.diff_mining import LENS, Config
from finetrace.methods.diff_mining.counts import TOKENS, Counts
from finetrace.methods.diff_mining.ranking import together
from finetrace.methods.diff_mining.result import LOGITS_UNIT, SHARE_UNIT, Moves, Result, Settings
from finetrace.methods.diff_mining.shortlist import shortlist
from finetrace.methods.diff_mining.spans import Spans
from finetrace.methods.diff_mining.texts import SUMS
from finetrace.methods.diff_mining.topics import find_topics
from finetrace.stats import ratio_estimate

_COMMONEST = 20

Table = dict[str, np.ndarray]


def summarise(
    config: Config, subject: Subject, *, counts: Counts, sample: Table, spans: Spans, texts: Table, k: int
) -> Result:
    """sample: see `Sample.columns`. texts: see `Texts.columns`. k: tokens of a top list, at most the vocabulary."""
    names, known = subject.slices, subject.vocabulary
    masked = (known.special & config.mask_special) | (known.dead & config.mask_dead)
    per_token = {name: counts.tokens[name].cpu().numpy() for name in TOKENS}
    moves = {
        name: Moves(
            positions=int(counts.slices["positions"][i]),
            **{key: values[i] for key, values in per_token.items()},
            kl=float(counts.slices["kl"][i]),
            reverse_kl=float(counts.slices["reverse_kl"][i]),
        )
        for i, name in enumerate(names)
    }
    whole = together(list(moves.values()))
    everything = np.ones(len(texts["row"]), bool), np.ones(len(sample["rank"]), bool)
    return Result(
        numbers=_estimates(texts, sample, everything, whole, subject.seed),
        slices={
            name: _estimates(
                texts, sample, (texts["slice"] == i, sample["slice"] == i), moves[name], subject.seed
            )
            for i, name in enumerate(names)
        },
        settings=Settings(
            k=k,
            layer=config.layer if config.extraction == LENS else None,
            ordering=config.ordering,
            rows=config.rows,
            merged=config.merge_variants,
            span=config.span,
            stride=config.stride,
            masked=int(masked.sum()),
            allowed=int((~masked).sum()),
        ),
        vocabulary=Columns({"token_id": known.ids, "token": list(known.texts), "masked": masked}),
        moves=moves,
        density={name: counts.density[i].numpy() for i, name in enumerate(names)},
        topics=find_topics(config, subject, sample, list(moves.values()), whole),
        shortlist=shortlist(config, subject, sample, whole),
        spans=spans.found(subject),
        span_texts={name: int(n) for name, n in zip(names, spans.texts(), strict=True)},
        texts=_texts(subject, texts),
        unscored={name: int(counts.slices["unscored"][i]) for i, name in enumerate(names)},
    )


def _estimates(
    texts: Table, sample: Table, masks: tuple[np.ndarray, np.ndarray], moves: Moves, seed: int
) -> dict[str, Estimate]:
    """masks: which texts, and which sampled positions."""
    texts, sample = (
        {k: v[mask] for k, v in t.items()} for t, mask in zip((texts, sample), masks, strict=True)
    )
    found = {
        f"{name}_mean": ratio_estimate(
            texts["sums"][:, i], texts["counts"], texts["key"], unit=LOGITS_UNIT, seed=seed, nonnegative=True
        )
        for i, name in enumerate(SUMS)
    }
    entries: np.ndarray = sample["ids"] >= 0
    order = np.argsort(-moves.promoted, kind="stable")[:_COMMONEST]
    hits = np.isin(sample["ids"], order[moves.promoted[order] > 0]) & entries
    share = hits.sum(1) / np.maximum(entries.sum(1), 1)
    counted = np.asarray(entries.any(1), np.int64)
    found["top20_share"] = ratio_estimate(
        share, counted, sample["key"], unit=SHARE_UNIT, seed=seed, nonnegative=True
    )
    return found


def _texts(subject: Subject, texts: Table) -> Columns:
    order = np.argsort(texts["row"], kind="stable")
    counts = texts["counts"][order]
    means = texts["sums"][order] / np.where(counts > 0, counts, np.nan)[:, None]
    return Columns(
        {
            "row": texts["row"][order],
            "slice": [subject.slices[i] for i in texts["slice"][order]],
            "positions": counts,
            **{name: means[:, i] for i, name in enumerate(SUMS)},
        }
    )
