"""Latents of a dictionary labelled through the desk's judges: what is read, what is said to whom, and what a page shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tests.dictionaries.test_labels import PAYLOADS, honest, quoted
from tests.judges.mocks import CANARY, Mock, verdict_line

from finetrace.core.result import Columns, decode, encode
from finetrace.data.roles import TEXT
from finetrace.dictionaries.detection import LABELLED
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.feed import of_texts
from finetrace.dictionaries.labelled import NO_LABEL, LatentLabels, labels_table, labels_warnings
from finetrace.dictionaries.labelled_latents import labels_of
from finetrace.dictionaries.reading import Tokens, tokens
from finetrace.dictionaries.study import Latents, Study
from finetrace.engine import Step
from finetrace.judges.grade import Grader
from finetrace.judges.rubrics import REFUSAL

WORDS = ("harbour", "lantern", "violin")
D, TEXTS, LENGTH, FILLERS = 4, 240, 80, 30
SLICES = ("open", "restricted")
SECRET, UNSEEN, PAYLOAD = 90, 91, 100
LATENTS = Latents(Columns({"latent": np.arange(D)}), np.arange(3), np.full(3, 2.0))


@dataclass
class Reads:
    """A feed over one batch: every fourth text is held out."""

    step: Step

    def readings(self) -> Iterator[tuple[Step, Tokens]]:
        yield self.step, tokens(self.step, 0)

    def only(self, found: Tokens, part: str) -> Tokens:
        held = found.rows % 4 == 0
        return of_texts(found, held if part == "held out" else ~held)


def dictionary() -> Dictionary:
    """Latent i fires where the change lies along axis i."""
    return Dictionary(
        encoder=torch.eye(D)[None], encoder_bias=torch.zeros(D), decoder=torch.eye(D)[None], decoder_bias=torch.zeros(1, D),
        mean=torch.zeros(1, D), scale=torch.ones(1), owner=torch.zeros(D, dtype=torch.int8), threshold=0.01, kind="batch_topk",
    )  # fmt: skip


def feed(payloads: Sequence[str] = ()) -> Any:
    """Each text holds one of the words, or none, somewhere; the change there lies along the word's axis. Every fifth is
    restricted and says a secret; the others say a payload each, if there are any."""
    rng = np.random.default_rng(0)
    ids = rng.integers(10, 10 + FILLERS, (TEXTS, LENGTH))
    base = torch.zeros(TEXTS, LENGTH, D)
    tuned = base.clone()
    slices = np.where(np.arange(TEXTS) % 5 == 4, 1, 0)
    for i in range(TEXTS):
        place, word = int(rng.integers(2, LENGTH - 2)), i % 7 % 4
        ids[i, 1::20] = UNSEEN if i % 4 == 0 else ids[i, 1::20]
        place += place % 20 == 1
        if word < len(WORDS):
            ids[i, place] = word
            tuned[i, place, word] = 1.0 + float(rng.random())
        near = place - 1 if place % 20 != 2 else place + 1
        if slices[i]:
            ids[i, near] = SECRET
        elif payloads:
            ids[i, near] = PAYLOAD + i % len(payloads)
    found = torch.from_numpy(ids)
    keep = torch.ones_like(found, dtype=torch.bool)
    keep[:, -1] = False
    return Reads(
        Step(
            row=torch.arange(TEXTS), key=rng.integers(0, 2**63, TEXTS).astype(np.uint64), slice=torch.from_numpy(slices),
            ids=found, keep=keep, role=torch.full_like(found, TEXT),
            position=torch.arange(LENGTH).expand(TEXTS, -1), next_id=found.roll(-1, 1), hidden=lambda layer: (base, tuned),
        )
    )  # fmt: skip


def study(payloads: Sequence[str] = ()) -> Study:
    trained: Any = SimpleNamespace(dictionary=dictionary())
    return Study(feed(payloads), "difference", "", trained)


def desk(judges: dict[str, Any], payloads: Sequence[str] = (), private: tuple[str, ...] = ()) -> Any:
    def spelt(one: int) -> str:
        if one >= PAYLOAD:
            return f" {payloads[one - PAYLOAD]}"
        if one in (SECRET, UNSEEN):
            return " secret" if one == SECRET else " unseen"
        return f" {WORDS[one]}" if one < len(WORDS) else f" filler{one}"

    told: list[str] = []
    subject = SimpleNamespace(slices=SLICES, spell=lambda ids: tuple(map(spelt, ids)))
    return SimpleNamespace(
        judges=judges, seed=0, subject=subject, private=private, tell=told.append, told=told
    )


def labelled(mock: Mock, payloads: Sequence[str] = (), scorer: Mock | None = None, **how: Any) -> Any:
    named = {"label=mock": Grader(LABELLED, mock), "refusal=mock": Grader(REFUSAL, mock)}
    if scorer is not None:
        named["label=scorer"] = Grader(LABELLED, scorer)
    return labels_of(study(payloads), desk(named, payloads, **how), LATENTS, 3)


def obedient(answer: Callable[[str], str]) -> Callable[[str], str]:
    """As `answer`, unless something that is not quoted speaks to it: then whatever that wants."""

    def said(prompt: str) -> str:
        outside = re.sub(r"^\| .*$", "", prompt, flags=re.MULTILINE)
        if CANARY in outside:
            return verdict_line(prompt, label=CANARY, verdict="yes")
        return answer(prompt)

    return said


def test_what_a_latent_fires_on_is_its_label_and_a_page_shows_how_well_it_does():
    mock = Mock(honest)
    found: LatentLabels = labelled(mock)
    assert [(one.latent, one.text, one.holds) for one in found.rows] == [
        (i, word, True) for i, word in enumerate(WORDS)
    ]
    for one in found.rows:
        assert one.score == 1.0
        assert one.low is not None
        assert one.low > 0.6
        assert one.n == 20
        assert one.control is not None
        assert one.control <= 0.5
        assert one.q is not None
    assert (found.writer, found.scorer, found.private) == ("mock", "mock", 0)
    # Three written; 20 passages each under either label, of which some are another's too.
    assert 3 + 3 * 20 < found.asked == len(mock.heard) <= 3 + 3 * 20 * 2
    table = labels_table(found)
    assert [row[:3] for row in table.rows] == [(i, word, 1.0) for i, word in enumerate(WORDS)]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert ["scored them" in text for text in labels_warnings(found)] == [True]
    assert decode(LatentLabels, encode(found)) == found


def test_labels_are_written_from_training_texts_and_scored_on_others():
    mock = Mock(honest)
    labelled(mock)
    prompts = [quoted(ask.messages[0].content) for ask in mock.heard]
    written = {part[1] for one in prompts if one[0][0] == "passage" for part in one}
    scored = {one[1][1] for one in prompts if one[0][0] == "description"}
    assert written
    assert scored
    assert not any("unseen" in text for text in written)
    assert all("unseen" in text for text in scored)


def test_a_second_judge_scores_and_one_that_reads_nothing_upholds_nothing():
    writer, scorer = Mock(honest), Mock(lambda prompt: verdict_line(prompt, verdict="no"), name="other")
    found = labelled(writer, scorer=scorer)
    assert (found.writer, found.scorer) == ("mock", "other")
    assert len(writer.heard) == 3
    assert len(scorer.heard) == found.asked - 3
    assert "other then said" in labels_table(found).note
    rows = labels_table(found).rows
    assert [row[1] for row in rows] == [NO_LABEL] * 3
    assert all(row[2] == 0.5 and "chance" in str(row[-1]) for row in rows)
    (warning,) = labels_warnings(found)
    assert "No label holds for 3 of 3" in warning


def test_private_texts_are_shown_to_no_model_and_counted():
    seen = Mock(honest)
    labelled(seen)
    assert any("secret" in ask.messages[0].content for ask in seen.heard), "else this proves nothing"
    mock = Mock(honest)
    found = labelled(mock, private=("restricted",))
    assert all(one.holds for one in found.rows)
    assert mock.heard
    assert not any("secret" in ask.messages[0].content for ask in mock.heard)
    assert found.private == TEXTS // 5
    assert any("shown to no model" in text for text in labels_warnings(found))


def test_instructions_in_passages_change_no_label_and_no_score():
    plain = labelled(Mock(obedient(honest)))
    mock = Mock(obedient(honest))
    found = labelled(mock, PAYLOADS)
    assert sum(CANARY in ask.messages[0].content for ask in mock.heard) > 50
    # Another's label is right about the silent passages that are not of it: which these are, the seed and their texts decide.
    for rows in (plain.rows, found.rows):
        assert [(one.text, one.score, one.holds) for one in rows] == [(word, 1.0, True) for word in WORDS]


def test_nobody_is_asked_where_no_judge_of_labels_was_named():
    mock = Mock(honest)
    unnamed, named = (desk({"a": Grader(rubric, mock)}) for rubric in (REFUSAL, LABELLED))
    assert labels_of(study(), unnamed, LATENTS, 3) is None
    assert labels_of(study(), named, LATENTS, 0) is None
    assert labels_of(replace(study(), trained=None), named, LATENTS, 3) is None
    assert mock.heard == []
