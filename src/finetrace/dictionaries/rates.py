"""How often, and how strongly, a dictionary's features fire in two models that read the same tokens, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.figures import (
    FloatArray,
    design_effect,
    divided,
    effective_size,
    tango,
    two_sided,
    wilson,
)
from finetrace.dictionaries.reading import Tokens, inputs, portions
from finetrace.stats import benjamini_hochberg
from finetrace.stats.rates import FEWEST_CLUSTERS

__all__ = ["Compared", "Rates"]

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Compared:
    """Features, float64 [feature] each; NaN where nothing can be said, and all of a feature that fires in neither model.

    base, tuned: share of tokens in which it fires, with Wilson's 95% interval at the effective number of tokens.
    difference: tuned - base, with Tango's interval for paired shares at the effective number; ratio: tuned / base, with the
    interval of its logarithm over texts. p: two-sided, of "in every text, more is as likely as fewer", q over features by
    Benjamini and Hochberg. code_base, code_tuned: mean code per token, in the dictionary's units, 0 where it does not fire;
    code_difference with a t interval over texts (none where no text differs), code_p and code_q as above.

    only_base, only_tuned: tokens in which one model's feature fires alone; in_texts: texts in which it fires in either.
    """

    base: FloatArray
    base_low: FloatArray
    base_high: FloatArray
    tuned: FloatArray
    tuned_low: FloatArray
    tuned_high: FloatArray
    difference: FloatArray
    low: FloatArray
    high: FloatArray
    ratio: FloatArray
    ratio_low: FloatArray
    ratio_high: FloatArray
    p: FloatArray
    q: FloatArray
    code_base: FloatArray
    code_tuned: FloatArray
    code_difference: FloatArray
    code_low: FloatArray
    code_high: FloatArray
    code_p: FloatArray
    code_q: FloatArray
    only_base: IntArray
    only_tuned: IntArray
    in_texts: IntArray
    tokens: int
    texts: int

    @property
    def fires(self) -> NDArray[np.bool_]:
        """Whether the feature fires at all, in either model."""
        return ~np.isnan(self.base)

    def significant(self, q: float = 0.05) -> NDArray[np.bool_]:
        """Whose rate changed: of those so called, a share of `q` at most is expected to be by chance."""
        return np.nan_to_num(self.q, nan=np.inf) <= q

    def columns(self) -> Columns:
        """One row a feature."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("tokens", "texts")}
        return Columns({"feature": np.arange(len(self.base)), **arrays})


class Rates:
    """Counts over texts, int64, and sums of codes, float64: a step has to hold each of its texts whole. Memory: about
    (18 + 2 x groups) x features x 8 bytes.

    The test takes a text's difference for as likely one way as the other where the two models differ by chance: it is valid
    for however few texts and rare features, unlike a normal approximation (`stats.signs.sign_symmetry`).
    """

    def __init__(self, dictionary: Dictionary, *, groups: int = 32) -> None:
        if dictionary.models != 1:
            raise BadInput(
                "Feature rates are compared with a dictionary of one model (an SAE), not a crosscoder."
            )
        self._dictionary = dictionary
        size = dictionary.latents
        counts = (
            "a",
            "b",
            "u",
            "aa",
            "bb",
            "ab",
            "an",
            "bn",
            "uu",
            "un",
            "only_a",
            "only_b",
            "moved",
            "in_texts",
        )
        self._counts = {name: np.zeros(size, np.int64) for name in counts}
        self._codes = {name: np.zeros(size) for name in ("a", "b", "dd", "dn")}
        self._squares = 0
        self.by_group: IntArray = np.zeros((2, groups, size), np.int64)
        """Tokens that fire, [base or tuned, group of texts, feature]: what any other figure can be bootstrapped from."""
        self.tokens_by_group: IntArray = np.zeros(groups, np.int64)
        self.texts_by_group: IntArray = np.zeros(groups, np.int64)

    def see(self, tokens: Tokens) -> None:
        totals: list[Tensor] = []
        for part in portions(len(tokens), self._dictionary.latents):
            found = _by_text(self._dictionary, tokens, part)
            totals = [one + more for one, more in zip(totals, found, strict=True)] if totals else found
        if not totals:
            return
        base, tuned, either, code_base, code_tuned = (total.cpu().numpy() for total in totals)
        length = np.bincount(tokens.text.cpu().numpy(), minlength=len(tokens.keys))
        self.add(tokens.keys, length, (base, tuned, either), (code_base, code_tuned))

    def add(
        self,
        keys: NDArray[np.uint64],
        length: IntArray,
        fired: tuple[IntArray, IntArray, IntArray],
        codes: tuple[FloatArray, FloatArray],
    ) -> None:
        """keys, length: [text], texts and how many tokens of each count. fired: tokens in which a feature fires, in the
        base, in the tuned and in either, [text, feature]; codes: their sums."""
        kept = length > 0
        keys, n = keys[kept], length[kept].astype(np.int64)
        a, b, u = (array[kept].astype(np.int64) for array in fired)
        only_a, only_b = u - b, u - a
        sums = {"a": a, "b": b, "u": u, "only_a": only_a, "only_b": only_b}
        sums |= {"moved": u > np.minimum(a, b), "in_texts": u > 0}
        for name, array in sums.items():
            self._counts[name] += array.sum(0)
        for name, (x, y) in {"aa": (a, a), "bb": (b, b), "ab": (a, b), "uu": (u, u)}.items():
            self._counts[name] += (x * y).sum(0)
        for name, x in {"an": a, "bn": b, "un": u}.items():
            self._counts[name] += n @ x
        first, second = (array[kept].astype(np.float64) for array in codes)
        change = second - first
        for name, array in {
            "a": first,
            "b": second,
            "dd": change * change,
            "dn": n[:, None] * change,
        }.items():
            self._codes[name] += array.sum(0)
        self._squares += int((n * n).sum())
        group = (keys % np.uint64(len(self.tokens_by_group))).astype(np.int64)
        np.add.at(self.tokens_by_group, group, n)
        np.add.at(self.texts_by_group, group, 1)
        for side, array in enumerate((a, b)):
            np.add.at(self.by_group[side], group, array)

    def merge(self, later: Rates) -> None:
        """As if `later`'s texts had been seen here."""
        for ours, theirs in ((self._counts, later._counts), (self._codes, later._codes)):
            for name, array in ours.items():
                array += theirs[name]
        self._squares += later._squares
        self.by_group += later.by_group
        self.tokens_by_group += later.tokens_by_group
        self.texts_by_group += later.texts_by_group

    @property
    def tokens(self) -> int:
        return int(self.tokens_by_group.sum())

    @property
    def texts(self) -> int:
        return int(self.texts_by_group.sum())

    def compared(self, *, level: float = 0.95) -> Compared:
        """All features, together in one correction."""
        c, n = self._counts, self.tokens
        fires = c["u"] > 0
        rate = divided(c["b"] - c["a"], np.array(n))
        found = {
            **self._side("base", "a", level),
            **self._side("tuned", "b", level),
            "difference": rate,
            **dict(zip(("low", "high"), self._paired(rate, level), strict=True)),
            **dict(zip(("ratio", "ratio_low", "ratio_high"), self._ratio(level), strict=True)),
            "p": two_sided(c["b"] - c["a"], c["aa"] + c["bb"] - 2 * c["ab"]),
            **self._strength(level),
        }
        found = {name: np.where(fires, array, np.nan) for name, array in found.items()}
        return Compared(
            **found,
            q=benjamini_hochberg(found["p"]),
            code_q=benjamini_hochberg(found["code_p"]),
            only_base=c["only_a"],
            only_tuned=c["only_b"],
            in_texts=c["in_texts"],
            tokens=n,
            texts=self.texts,
        )

    def _spread(self, square: NDArray[Any], cross: NDArray[Any], rate: FloatArray) -> FloatArray:
        """Sum over texts of (a text's sum - rate x its tokens)^2, from the sum of squares and that of sum x tokens."""
        return np.maximum(0.0, square - 2 * rate * cross + rate * rate * self._squares)

    def _design(self, name: str) -> FloatArray:
        c, n = self._counts, self.tokens
        rate = divided(c[name], np.array(n))
        spread = self._spread(c[name * 2], c[f"{name}n"], rate)
        return design_effect(spread, n * rate * (1 - rate), self.texts)

    def _side(self, side: str, name: str, level: float) -> dict[str, FloatArray]:
        rate = divided(self._counts[name], np.array(self.tokens))
        low, high = wilson(rate, effective_size(self.tokens, self._design(name), self.texts, level), level)
        return {side: rate, f"{side}_low": low, f"{side}_high": high}

    def _paired(self, rate: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
        """Where hardly any text differs there is nothing to see by how much differences go together: as much as firing."""
        c, n = self._counts, self.tokens
        spread = self._spread(c["aa"] + c["bb"] - 2 * c["ab"], c["bn"] - c["an"], rate)
        design = design_effect(spread, c["only_a"] + c["only_b"] - n * rate * rate, self.texts)
        design = np.where(c["moved"] < FEWEST_CLUSTERS, np.maximum(design, self._design("u")), design)
        size = effective_size(n, design, self.texts, level)
        shrink = size / max(1, n)
        return tango(c["only_b"] * shrink, c["only_a"] * shrink, size, level)

    def _ratio(self, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """No ratio where the base never fires; no interval where the tuned never does, or where too few texts differ."""
        c = self._counts
        a, b, texts = c["a"].astype(np.float64), c["b"].astype(np.float64), self.texts
        value = divided(b, a)
        variance = divided(c["aa"], a * a) + divided(c["bb"], b * b) - 2 * divided(c["ab"], a * b)
        if texts < 2:
            return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
        variance = np.where(c["moved"] < FEWEST_CLUSTERS, np.nan, variance)
        error = np.sqrt(np.maximum(0.0, variance) * texts / (texts - 1))
        factor = np.exp(np.minimum(float(stats.t.ppf(0.5 + level / 2, texts - 1)) * error, 500.0))
        return value, value / factor, value * factor

    def _strength(self, level: float) -> dict[str, FloatArray]:
        sums, n, texts = self._codes, self.tokens, self.texts
        base, tuned = (divided(sums[name], np.array(n)) for name in ("a", "b"))
        change = tuned - base
        half = np.full_like(change, np.nan)
        if texts > 1:
            spread = self._spread(sums["dd"], sums["dn"], change) * texts / (texts - 1)
            half = float(stats.t.ppf(0.5 + level / 2, texts - 1)) * np.sqrt(spread) / n
            half[sums["dd"] == 0] = np.nan
        return {
            "code_base": base,
            "code_tuned": tuned,
            "code_difference": change,
            "code_low": change - half,
            "code_high": change + half,
            "code_p": two_sided(sums["b"] - sums["a"], sums["dd"]),
        }


def _by_text(dictionary: Dictionary, tokens: Tokens, part: slice) -> list[Tensor]:
    """Of a portion: tokens in which a feature fires in the base, the tuned and either, and sums of codes, [text, feature]."""
    base, tuned = (
        dictionary.codes(inputs(dictionary, tokens.base[part], tokens.tuned[part], side))
        for side in ("base", "tuned")
    )
    text = tokens.text[part]

    def total(values: Float[Tensor, "token feature"]) -> Float[Tensor, "text feature"]:
        out = torch.zeros(len(tokens.keys), dictionary.latents, dtype=torch.float64, device=values.device)
        return out.index_add_(0, text, values.double())

    fired: tuple[Int[Tensor, "token feature"], ...] = (base > 0, tuned > 0, (base > 0) | (tuned > 0))
    return [*(total(one) for one in fired), total(base), total(tuned)]
