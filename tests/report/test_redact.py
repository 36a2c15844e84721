"""Words of hidden slices leave the report wherever a method put them: tables, summaries, labels of figures."""

from __future__ import annotations

from dataclasses import replace

from tests.report.sample import sample_findings

from finetrace.core.page import Figure, Page, Scatter, Series, Table
from finetrace.report.redact import HIDDEN_CELL, redact

SECRET = "marzipan"
HIDDEN, SEEN = "restricted_text", "text"


def tokens(key: str) -> Table:
    return Table(key, "Tokens", ("token", "token_id", "count"), ((SECRET, 7, 3),))


def shown(*hidden: str) -> Page:
    found = sample_findings()
    name, finding = next(iter(found.findings.items()))
    named = Scatter((Series(SECRET, (1.0,), (1.0,)),))
    blocks = (
        tokens("promoted"),
        tokens(f"promoted_{HIDDEN}"),
        tokens(f"promoted_{SEEN}"),
        Figure("tokens", "Tokens", named, spells=True),
        Figure("sizes", "Sizes", Scatter((Series("all", (1.0,), (1.0,)),))),
    )
    slices = {HIDDEN: {}, SEEN: {}}
    one = replace(finding, slices=slices, page=Page("P", f"It promotes “{SECRET}”.", blocks))
    return redact(replace(found, findings={name: one}, redacted=hidden)).findings[name].page


def tables(page: Page) -> dict[str, tuple[object, ...]]:
    return {block.key: block.rows[0] for block in page.blocks if isinstance(block, Table)}


def test_a_hidden_slices_tokens_and_those_of_all_together_go():
    found = tables(shown(HIDDEN))
    assert found["promoted"] == found[f"promoted_{HIDDEN}"] == (HIDDEN_CELL, HIDDEN_CELL, 3)


def test_a_visible_slices_tokens_stay_though_a_hidden_ones_name_ends_like_it():
    assert tables(shown(HIDDEN))[f"promoted_{SEEN}"] == (SECRET, 7, 3)


def test_summaries_and_figures_that_spell_words_lose_them():
    page = shown(HIDDEN)
    assert SECRET not in page.summary
    assert [block.key for block in page.blocks if isinstance(block, Figure)] == ["sizes"]


def test_nothing_goes_where_nothing_is_hidden():
    page = shown()
    assert SECRET in page.summary
    assert tables(page)["promoted"] == (SECRET, 7, 3)
    assert [block.key for block in page.blocks if isinstance(block, Figure)] == ["tokens", "sizes"]
