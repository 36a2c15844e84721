"""Latent scaling: how strongly each model's states hold what a latent stands for, in closed form, with intervals over texts.

beta = argmin over b of sum |y - b f d|^2 = sum f <y, d> / (sum f^2 |d|^2), for a latent's code f, its decoder d and a target
y of either model. nu = beta of the base / beta of the tuned: 0 where only the tuned model holds it. A latent whose decoder
is small in the base although the base holds it has a large nu of the error (the dictionary left it there: complete
shrinkage) or of the reconstruction (other latents write it there: decoupling). Source: Minder et al. 2025, "Robustly
identifying concepts introduced during chat fine-tuning using crosscoders".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from finetrace.core.errors import BadInput
from finetrace.dictionaries.dictionary import Dictionary, code_weights
from finetrace.dictionaries.figures import divided, fieller, jackknifed, two_sided
from finetrace.dictionaries.reading import Tokens, inputs, portions
from finetrace.stats.bootstrap import FloatArray

__all__ = ["FEWEST_GROUPS", "TARGETS", "Betas", "Scaling", "Target"]

Target = Literal["activation", "activation_less_bias", "reconstruction", "error"]
TARGETS: tuple[Target, ...] = ("activation", "activation_less_bias", "reconstruction", "error")
FEWEST_GROUPS = 3
"""Groups of texts in which a latent is active, below which nothing is said about it."""

# With fewer active codes than this share it is cheaper to take each one's product than all of them.
_SPARSE, _NUMBERS = 1 / 250, 2**24


@dataclass(frozen=True, eq=False)
class Betas:
    """Everything float64, NaN where nothing can be said: too few active tokens or groups, or no such target.

    sides: whose states are the target: base, tuned, and "difference" of a dictionary that reads differences (it alone then
    has a reconstruction and an error). directions: whose decoder d is: base and tuned of a crosscoder, else "own".
    value, low, high: target -> [side, direction, latent], 95% interval over groups of texts. ratio, ratio_low, ratio_high:
    target -> [direction, latent], base over tuned, by Fieller's interval: NaN where the tuned beta cannot be told from 0.
    p: target -> [direction, latent], two-sided, of "both models hold it alike"; NaN for a dictionary that reads differences,
    as there the code itself is made of what differs.
    tokens, groups: int64 [latent], where the latent is active.
    """

    sides: tuple[str, ...]
    directions: tuple[str, ...]
    value: dict[Target, FloatArray]
    low: dict[Target, FloatArray]
    high: dict[Target, FloatArray]
    ratio: dict[Target, FloatArray]
    ratio_low: dict[Target, FloatArray]
    ratio_high: dict[Target, FloatArray]
    p: dict[Target, FloatArray]
    tokens: NDArray[np.int64]
    groups: NDArray[np.int64]

    def sides_of(self, target: Target) -> tuple[str, ...]:
        """The sides that have such a target at all."""
        if len(self.sides) == 3 and target in ("reconstruction", "error"):
            return self.sides[2:]
        return self.sides

    def at(self, target: Target, side: str, direction: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """beta and the ends of its interval, [latent] each."""
        place = (self.sides.index(side), self.directions.index(direction))
        return self.value[target][place], self.low[target][place], self.high[target][place]


class Scaling:
    """Sums over tokens, by group of texts: float64, counts int64; give it texts that the dictionary was not trained on
    (`reading.held_out`). Memory: about 104 x groups x latents bytes for a crosscoder, whatever the number of tokens.

    Codes and targets are in the dictionary's normalised space, in which both models are of one size. Of a dictionary that
    reads differences, the states of base and tuned are multiplied by its scale, the codes are those of tuned - base, and
    the bias is each model's mean over the tokens seen.

    The error y - (reconstruction without the latent) needs no reconstruction per latent: its sum is that of the residual,
    plus sum f^2 |d|^2.
    """

    def __init__(
        self, dictionary: Dictionary, reads: Literal["both", "difference"], *, groups: int = 32
    ) -> None:
        if groups < FEWEST_GROUPS:
            raise BadInput(f"Intervals need {FEWEST_GROUPS} groups of texts or more, not {groups}.")
        self._dictionary, self._groups = dictionary, groups
        self._reads: Literal["both", "difference"] = reads
        models, latents = dictionary.models, dictionary.latents
        shape = {
            "activation": (2, models),
            "residual": (models, models),
            "written": (models,),
            "code": (),
            "square": (),
        }
        self._sums = {name: np.zeros((*axes, groups, latents)) for name, axes in shape.items()}
        self._count = np.zeros((groups, latents), np.int64)
        self._states = np.zeros((2, dictionary.d))
        self._shift: FloatArray | None = None
        self._seen = 0

    @property
    def seen(self) -> int:
        """Tokens."""
        return self._seen

    def see(self, tokens: Tokens) -> None:
        group = torch.from_numpy((tokens.keys % np.uint64(self._groups)).astype(np.int64))
        group = group.to(tokens.text.device)[tokens.text]
        for part in portions(len(tokens), self._dictionary.latents):
            self._add(tokens.base[part], tokens.tuned[part], group[part])

    def _add(
        self, base: Float[Tensor, "token d"], tuned: Float[Tensor, "token d"], group: Int[Tensor, " token"]
    ) -> None:
        some, sums = self._dictionary, self._sums
        x = inputs(some, base, tuned, self._reads)
        z, codes = some.normalise(x), some.codes(x)
        # Laid out alike, so that equal states give equal sums to the last bit: a model compared with itself differs in nothing.
        states = [side.contiguous() for side in self._targets(base, tuned, z).unbind(1)]
        row, latent = codes.nonzero(as_tuple=True)
        value, place = codes[row, latent], (group[row] * some.latents + latent).cpu()

        def add(total: FloatArray, amounts: Tensor) -> None:
            torch.from_numpy(total).view(-1).index_add_(0, place, amounts.double().cpu())

        parts = self._parts(codes)
        residual = [z[:, m] - part @ some.decoder[m] - some.decoder_bias[m] for m, part in enumerate(parts)]
        for n, decoder in enumerate(some.decoder):
            for into, rows in (
                *zip(sums["activation"][:, n], states, strict=True),
                *zip(sums["residual"][:, n], residual, strict=True),
            ):
                add(into, value * _products(rows, decoder, row, latent))
        for into, part in zip(sums["written"], parts, strict=True):
            add(into, value * part[row, latent])
        add(sums["code"], value)
        add(sums["square"], value * value)
        torch.from_numpy(self._count).view(-1).index_add_(0, place, torch.ones_like(place))
        self._states += np.stack([side.double().sum(0).cpu().numpy() for side in states])
        self._seen += len(base)

    def _targets(self, base: Tensor, tuned: Tensor, z: Tensor) -> Float[Tensor, "token side d"]:
        """Both sides' states; of a dictionary of differences less a shift, so that a large mean costs no precision."""
        if self._reads == "both":
            return z
        states = torch.stack([base, tuned], 1) * self._dictionary.scale[0]
        if self._shift is None:
            self._shift = states.mean(0).double().cpu().numpy()
        return states - torch.from_numpy(self._shift).to(states)

    def _parts(self, codes: Float[Tensor, "token latent"]) -> list[Tensor]:
        """What each model decodes: with decoupled norms a code can be too weak for one of them."""
        some = self._dictionary
        if some.code_norm != "decoupled":
            return [codes] * some.models
        weights = code_weights(some.decoder, "decoupled")
        return [torch.where(codes * own > some.threshold, codes, 0.0) for own in weights]

    def merge(self, later: Scaling) -> None:
        """As if `later`'s tokens had been seen here."""
        ours, theirs = self._shift, later._shift
        states, activation = later._states, later._sums["activation"]
        if ours is None:
            self._shift = theirs
        elif theirs is not None and not np.array_equal(ours, theirs):
            states = states + later._seen * (theirs - ours)
            activation = activation + later._along(theirs - ours)
        for name, total in self._sums.items():
            total += activation if name == "activation" else later._sums[name]
        self._count += later._count
        self._states += states
        self._seen += later._seen

    def targets(self) -> dict[Target, FloatArray]:
        """sum f <y, d> by target, [side, direction, group, latent]; NaN where a side has no such target."""
        some = self._dictionary
        decoder, bias = some.decoder.double().cpu().numpy(), some.decoder_bias.double().cpu().numpy()
        sums, along = self._sums, self._along
        gram = np.einsum("mld,nld->mnl", decoder, decoder)[:, :, None]
        error = sums["residual"] + gram * sums["written"][:, None]
        if self._reads == "both":
            whole = sums["activation"]
            return {
                "activation": whole,
                "activation_less_bias": whole - along(bias),
                "reconstruction": whole - sums["residual"],
                "error": error,
            }
        shift = np.zeros_like(self._states) if self._shift is None else self._shift
        mean = self._states / max(1, self._seen)
        change = sums["activation"][1:] - sums["activation"][:1]
        own = (some.mean * some.scale[:, None]).double().cpu().numpy()
        change = change + along(shift[1:] - shift[:1] - own)
        nothing = np.full_like(sums["activation"], np.nan)
        return {
            "activation": np.concatenate([sums["activation"] + along(shift), change]),
            "activation_less_bias": np.concatenate([sums["activation"] - along(mean), change - along(bias)]),
            "reconstruction": np.concatenate([nothing, change - sums["residual"]]),
            "error": np.concatenate([nothing, error]),
        }

    def _along(self, vectors: Float[np.ndarray, "side d"]) -> FloatArray:
        """sum f <v, d> for each of the vectors, [side, direction, group, latent]."""
        decoder = self._dictionary.decoder.double().cpu().numpy()
        return np.einsum("sd,nld->snl", vectors, decoder)[:, :, None] * self._sums["code"]

    def weights(self) -> FloatArray:
        """sum f^2 |d|^2, [direction, group, latent]: a beta is the target's sum over this."""
        norms = self._dictionary.decoder.double().cpu().square().sum(2).numpy()
        return norms[:, None] * self._sums["square"]

    def betas(self, *, fewest: int = 20) -> Betas:
        """fewest: active tokens below which nothing is said about a latent."""
        count = self._count
        tokens, groups = count.sum(0), (count > 0).sum(0)
        enough = (tokens >= fewest) & (groups >= FEWEST_GROUPS)
        whole, found = self.weights(), self.targets()
        one = self._reads == "difference"
        sides = ("base", "tuned", "difference") if one else ("base", "tuned")
        directions = ("own",) if one else ("base", "tuned")
        fields: dict[str, dict[Target, FloatArray]] = {
            name: {} for name in ("value", "low", "high", "ratio", "ratio_low", "ratio_high", "p")
        }
        for target, sums in found.items():
            per_side = np.full((3, *sums.shape[:2], sums.shape[-1]), np.nan)
            for s, n in product(range(len(sides)), range(len(directions))):
                per_side[0, s, n] = divided(sums[s, n].sum(0), whole[n].sum(0))
                per_side[1:, s, n] = jackknifed(sums[s, n], whole[n])
            per_side[..., ~enough] = np.nan
            fields["value"][target], fields["low"][target], fields["high"][target] = per_side
            between = [_compared(sums[0, n], sums[1, n], enough, one) for n in range(len(directions))]
            stacked = np.stack(between, 1)
            for name, array in zip(("ratio", "ratio_low", "ratio_high", "p"), stacked, strict=True):
                fields[name][target] = array
        return Betas(sides, directions, **fields, tokens=tokens, groups=groups)


def _compared(
    base: FloatArray, tuned: FloatArray, enough: NDArray[np.bool_], circular: bool
) -> Float[np.ndarray, "four latent"]:
    """Ratio, its ends and p of "alike", from sums [group, latent] of one target along one direction."""
    out = np.full((4, base.shape[-1]), np.nan)
    if np.isnan(base).all():
        return out
    low, high = fieller(base, tuned)
    known = enough & np.isfinite(low)
    total = tuned.sum(0)
    out[0] = np.divide(base.sum(0), total, out=out[0], where=known)
    out[1], out[2] = np.where(known, low, np.nan), np.where(known, high, np.nan)
    if not circular:
        gap = tuned - base
        out[3] = np.where(enough, two_sided(gap.sum(0), np.square(gap).sum(0)), np.nan)
    return out


def _products(
    rows: Float[Tensor, "token d"],
    decoder: Float[Tensor, "latent d"],
    row: Int[Tensor, " active"],
    latent: Int[Tensor, " active"],
) -> Float[Tensor, " active"]:
    """<rows[row], decoder[latent]> of the active codes."""
    if len(row) > _SPARSE * rows.shape[0] * decoder.shape[0]:
        return (rows @ decoder.T)[row, latent]
    size = max(1, _NUMBERS // rows.shape[1])
    pairs = zip(row.split(size), latent.split(size), strict=True)
    return torch.cat([rows.new_zeros(0), *((rows[r] * decoder[j]).sum(1) for r, j in pairs)])
