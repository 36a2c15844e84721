"""What is known of each latent of a dictionary: one row a latent, the ones worth showing, and the words of its decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.result import Columns
from finetrace.dictionaries.dictionary import Dictionary
from finetrace.dictionaries.figures import (
    FloatArray,
    design_effect,
    divided,
    effective_size,
    wilson,
)
from finetrace.dictionaries.reading import Reads, Tokens, inputs, portions
from finetrace.dictionaries.scaling import Betas, Target
from finetrace.engine import Subject
from finetrace.stats import benjamini_hochberg

__all__ = ["HELD", "Firings", "latent_table", "pick", "top_tokens"]

HELD = 0.5
"""A tuned-only latent is confirmed where both ratios of betas (of the error, of the reconstruction) are surely below."""

_SHOWN: tuple[Target, ...] = ("activation_less_bias", "reconstruction", "error")
_ENDS = ("", "_low", "_high")
# Vectors read through the heads at once: a large vocabulary makes each a megabyte.
_READ = 32


class Firings:
    """How often and how strongly latents fire: counts int64, sums float64, over whatever is seen. A step has to hold each
    of its texts whole. slices: how many there are, 1 for all together. Memory: about (7 + slices) x latents x 8 bytes."""

    def __init__(self, dictionary: Dictionary, reads: Reads, slices: int = 1) -> None:
        self._dictionary = dictionary
        self._reads: Reads = reads
        size = dictionary.latents
        self.by_slice: NDArray[np.int64] = np.zeros((slices, size), np.int64)
        """Tokens in which a latent fires, [slice, latent]."""
        self.tokens: NDArray[np.int64] = np.zeros(slices, np.int64)
        self.texts: NDArray[np.int64] = np.zeros(slices, np.int64)
        self.in_texts: NDArray[np.int64] = np.zeros(size, np.int64)
        self.total: FloatArray = np.zeros(size)
        self.square: FloatArray = np.zeros(size)
        self.largest: FloatArray = np.zeros(size)
        self._squares, self._cross = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._lengths = 0

    def see(self, tokens: Tokens) -> None:
        some = self._dictionary
        device, shape = tokens.base.device, (len(tokens.keys), some.latents)
        fired = torch.zeros(shape, dtype=torch.int64, device=device)
        for part in portions(len(tokens), some.latents):
            codes = some.codes(inputs(some, tokens.base[part], tokens.tuned[part], self._reads))
            fired.index_add_(0, tokens.text[part], (codes > 0).long())
            wide = codes.double()
            self.total += wide.sum(0).cpu().numpy()
            self.square += wide.square().sum(0).cpu().numpy()
            self.largest = np.maximum(self.largest, wide.amax(0).cpu().numpy())
        length = np.bincount(tokens.text.cpu().numpy(), minlength=shape[0])
        kept = length > 0
        count, n, where = fired.cpu().numpy()[kept], length[kept].astype(np.int64), tokens.slices[kept]
        where = where if len(self.tokens) > 1 else np.zeros_like(where)
        np.add.at(self.by_slice, where, count)
        np.add.at(self.tokens, where, n)
        np.add.at(self.texts, where, 1)
        self.in_texts += (count > 0).sum(0)
        self._squares += (count * count).sum(0)
        self._cross += n @ count
        self._lengths += int((n * n).sum())

    def merge(self, later: Firings) -> None:
        """As if `later`'s texts had been seen here."""
        for name in ("by_slice", "tokens", "texts", "in_texts", "total", "square", "_squares", "_cross"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.largest = np.maximum(self.largest, later.largest)
        self._lengths += later._lengths

    @property
    def active(self) -> NDArray[np.int64]:
        """Tokens in which a latent fires, [latent]."""
        return self.by_slice.sum(0)

    def frequency(self, level: float = 0.95) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Share of tokens [latent] and its Wilson interval at the effective number of tokens. A latent that never fires is
        bounded as if every text were one token: nothing says how its tokens would go together."""
        n, texts = int(self.tokens.sum()), int(self.texts.sum())
        rate = divided(self.active, np.array(n))
        spread = self._squares - 2 * rate * self._cross + rate * rate * self._lengths
        design = design_effect(np.maximum(0.0, spread), n * rate * (1 - rate), texts)
        design = np.where(self.active == 0, n / max(1, texts), design)
        return (rate, *wilson(rate, effective_size(n, design, texts, level), level))


def latent_table(
    dictionary: Dictionary, firings: Firings, betas: Betas | None = None, slices: Sequence[str] = ()
) -> Columns:
    """One row a latent; NaN where nothing can be said.

    dead: it never fired. frequency: share of tokens; mean_code (where it fires), largest_code: a code of 1 adds
    `directions` to the hidden states; active_tokens, active_texts. energy: mean square, over all tokens, of what the latent
    adds to the difference of the models, (code x |d_tuned - d_base|)^2 or, of differences, (code x |d|)^2, in the hidden
    states' unit. Norms are of the normalised space.

    Of a crosscoder: tag and norm_difference (`Dictionary.tags`), the cosine between its two decoders, `confirmed` (tagged
    tuned-only, and the ratios of betas along the tuned decoder say so too), `shrunk` (tagged so, but the base surely holds
    more than `HELD` of it), q of "both models hold it alike" over latents (by the error, along the tuned decoder).
    Of each target and side of betas: beta_TARGET_SIDE_along_DIRECTION with _low and _high; ratios as ratio_TARGET_along_DIRECTION.
    """
    rate, low, high = firings.frequency()
    active = firings.active
    data: dict[str, np.ndarray | list[str]] = {
        "latent": np.arange(dictionary.latents),
        "dead": active == 0,
        "frequency": rate,
        "frequency_low": low,
        "frequency_high": high,
        "active_tokens": active,
        "active_texts": firings.in_texts,
        "mean_code": divided(firings.total, active),
        "largest_code": np.where(active > 0, firings.largest, np.nan),
        "energy": _energy(dictionary, firings),
    }
    for name, count, n in zip(slices, firings.by_slice, firings.tokens, strict=True) if slices else ():
        data[f"frequency in {name}"] = divided(count, n)
    data |= _norms(dictionary)
    if betas is not None:
        data |= _scaled(betas)
        if dictionary.models == 2:
            data |= _standing(data, betas)
    return Columns(data)


def _energy(dictionary: Dictionary, firings: Firings) -> FloatArray:
    d = dictionary.directions().double()
    written = (d[1] - d[0] if dictionary.models == 2 else d[0]).square().sum(1).cpu().numpy()
    return divided(firings.square, np.array(firings.tokens.sum())) * written


def _norms(dictionary: Dictionary) -> dict[str, np.ndarray | list[str]]:
    decoder, encoder = dictionary.decoder.double(), dictionary.encoder.double()
    sides = ("_base", "_tuned") if dictionary.models == 2 else ("",)
    data: dict[str, np.ndarray | list[str]] = {}
    for m, side in enumerate(sides):
        data[f"decoder_norm{side}"] = decoder[m].norm(dim=1).cpu().numpy()
        data[f"encoder_norm{side}"] = encoder[m].norm(dim=0).cpu().numpy()
    if dictionary.models == 2:
        inner = (decoder[0] * decoder[1]).sum(1).cpu().numpy()
        sizes = (decoder[0].norm(dim=1) * decoder[1].norm(dim=1)).cpu().numpy()
        data["decoder_cosine"] = divided(inner, sizes)
        data["norm_difference"] = dictionary.norm_difference().double().cpu().numpy()
        data["tag"] = dictionary.tags()
        data["owner"] = dictionary.owner.cpu().numpy().astype(np.int64)
    return data


def _scaled(betas: Betas) -> dict[str, np.ndarray | list[str]]:
    """The same columns for every dictionary of a kind, whatever could be said of its latents."""
    data: dict[str, np.ndarray | list[str]] = {}
    for target in _SHOWN:
        sides = betas.sides_of(target)
        for n, direction in enumerate(betas.directions):
            along = "" if direction == "own" else f"_along_{direction}"
            for side in sides:
                for suffix, array in zip(_ENDS, betas.at(target, side, direction), strict=True):
                    data[f"beta_{target}_{side}{along}{suffix}"] = array
            if "base" in sides:
                ratios = (betas.ratio, betas.ratio_low, betas.ratio_high)
                for suffix, ratio in zip(_ENDS, ratios, strict=True):
                    data[f"ratio_{target}{along}{suffix}"] = ratio[target][n]
    return data


def _standing(data: dict[str, np.ndarray | list[str]], betas: Betas) -> dict[str, np.ndarray | list[str]]:
    n = betas.directions.index("tuned")
    tagged = np.array([tag == "tuned-only" for tag in data["tag"]])
    below, above = tagged.copy(), np.zeros_like(tagged)
    for target in ("error", "reconstruction"):
        below &= np.nan_to_num(betas.ratio_high[target][n], nan=np.inf) < HELD
        above |= np.nan_to_num(betas.ratio_low[target][n], nan=-np.inf) > HELD
    return {"confirmed": below, "shrunk": tagged & above, "q": benjamini_hochberg(betas.p["error"][n])}


def pick(table: Columns, count: int, q: float = 0.05) -> NDArray[np.int64]:
    """The latents worth showing, at most `count`: confirmed tuned-only ones, those that the models do not hold alike (by `q`,
    and not the shrunk), the rest; each by energy. A tag alone puts none first: latents that are tuned-only by design and fire
    in a few texts would fill the list. Dead latents, and those that add nothing to the
    difference, are never among them. `q` says that a latent's share differs, not that training is why: ask nulls."""
    data = {name: np.asarray(values) for name, values in table.data.items()}
    energy, nothing = data["energy"], np.zeros(len(table), bool)
    confirmed, shrunk = data.get("confirmed", nothing), data.get("shrunk", nothing)
    unlike = np.nan_to_num(data.get("q", nothing + 1.0), nan=1.0) <= q
    rank = np.select([confirmed, unlike & ~shrunk], [0, 1], 2)
    order = np.lexsort((np.arange(len(table)), -np.nan_to_num(energy), rank))
    kept = ~data["dead"] & (np.nan_to_num(energy) > 0)
    return order[kept[order]][:count].astype(np.int64)


def top_tokens(vectors: Float[Tensor, "vector d_model"], subject: Subject, count: int = 10) -> Columns:
    """The tokens that each direction makes most and least likely through both models' heads.

    vector: its row; head: base or tuned; sign: promoted or suppressed; rank from 1; token, token_id; logit, of the
    direction at a root mean square of 1, centred: the mean over all tokens that can be read is 0. A direction of 0 has no
    tokens.
    """
    words = subject.vocabulary
    columns = np.flatnonzero(~(words.special | words.dead))
    count = min(count, len(columns))
    size = vectors.double().square().mean(1, keepdim=True).sqrt()
    live = (size[:, 0] > 0).nonzero().squeeze(1)
    shape = (len(live), 2, 2, count)
    best, logit = np.zeros(shape, np.int64), np.zeros(shape)
    for start in range(0, len(live), _READ):
        some = live[start : start + _READ]
        unit = (vectors[some].double() / size[some]).float().cpu()
        for head, logits in enumerate(subject.lens(unit, True)):
            centred = logits.double().numpy()[:, columns]
            centred -= centred.mean(1, keepdims=True)
            for sign, turned in enumerate((centred, -centred)):
                place = np.argsort(-turned, axis=1, kind="stable")[:, :count]
                best[start : start + _READ, head, sign] = place
                logit[start : start + _READ, head, sign] = np.take_along_axis(centred, place, 1)
    vector, head, sign, rank = (index.reshape(-1) for index in np.indices(shape))
    column = columns[best.reshape(-1)]
    return Columns(
        {
            "vector": live.cpu().numpy()[vector],
            "head": [("base", "tuned")[i] for i in head.tolist()],
            "sign": [("promoted", "suppressed")[i] for i in sign.tolist()],
            "rank": rank + 1,
            "token": [words.texts[i] for i in column.tolist()],
            "token_id": words.ids[column],
            "logit": logit.reshape(-1),
        }
    )
