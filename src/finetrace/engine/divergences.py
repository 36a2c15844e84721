"""Per-token divergences between base and tuned next-token distributions, from the *difference* of the logits.

Two rounded logits subtracted lose a small fine-tune altogether. Here the difference is its own matrix product,
dz = (h_tuned - h_base) W^T, and with g(x) = e^x - 1 - x and h(x) = 1 + (x - 1) e^x, both >= 0, every sum below
has terms >= 0 only, so that nothing cancels and nothing is ever negative:

    u = dz - E_b[dz]                        KL(base || tuned) = log1p(E_b[g(u)])
    r = u - KL(base || tuned)               the log ratio, log p_tuned - log p_base
    KL(tuned || base) = E_b[h(r)]           JS = E_b[a expm1(r) - L (2 + expm1(r))] / 2,  a = r / 2, L = log cosh a

(E_b: expectation over the vocabulary under the base.) All reductions are in float32 or better. Accuracy
against float64 is in tests/engine/test_divergences.py: 2e-5 relative from KL 1e-11 to 500.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Beyond this |u|, exp leaves float32's range; such tokens are few and are done over again in float64.
_LARGE = 60.0


@dataclass(frozen=True)
class Divergences:
    """One value per token, in nats, float32. kl: KL(tuned || base). reverse_kl: KL(base || tuned). js: Jensen-Shannon.

    log_ratio: log p_tuned - log p_base over the vocabulary.
    """

    kl: Float[Tensor, " token"]
    reverse_kl: Float[Tensor, " token"]
    js: Float[Tensor, " token"]
    log_ratio: Float[Tensor, "token vocab"]


def divergences(
    base_log_probs: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"]
) -> Divergences:
    """Divergences from base log-probabilities and the difference of the logits (tuned - base), both float32."""
    base_probs = base_log_probs.exp()
    u = difference - (base_probs * difference).sum(-1, keepdim=True)
    large = u.abs().amax(-1) > _LARGE
    u = u.clamp(-_LARGE, _LARGE)
    reverse = torch.log1p((base_probs * _excess(u)).sum(-1))
    ratio = u - reverse[:, None]
    growth = torch.expm1(ratio)
    kl = (base_probs * _weighted(ratio)).sum(-1)
    half = ratio / 2
    log_cosh = torch.log1p(2 * torch.sinh(half / 2) ** 2)
    js = 0.5 * (base_probs * (half * growth - log_cosh * (2 + growth))).sum(-1)
    if bool(large.any()):
        exact = _plain(base_log_probs[large], difference[large])
        kl[large], reverse[large], js[large], ratio[large] = (
            exact.kl,
            exact.reverse_kl,
            exact.js,
            exact.log_ratio,
        )
    return Divergences(kl.clamp_min_(0), reverse.clamp_min_(0), js.clamp_min_(0), ratio)


def _excess(x: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """g(x) = e^x - 1 - x = x^2/2! + x^3/3! + ...: near 0 by the series, where the difference would be all rounding."""
    near = _series(x, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320))
    return torch.where(x.abs() < 0.5, near, torch.expm1(x) - x)


def _weighted(x: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """h(x) = 1 + (x - 1) e^x = x^2 1/2! + x^3 2/3! + x^4 3/4! + ...: near 0 by the series."""
    near = _series(x, (1 / 2, 2 / 6, 3 / 24, 4 / 120, 5 / 720, 6 / 5040, 7 / 40320, 8 / 362880))
    return torch.where(x.abs() < 0.5, near, 1 + (x - 1) * x.exp())


def _series(x: Float[Tensor, "token vocab"], coefficients: tuple[float, ...]) -> Float[Tensor, "token vocab"]:
    """x^2 (c0 + c1 x + c2 x^2 + ...), by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total.mul_(x).add_(coefficient)
    return total.mul_(x).mul_(x)


def _plain(
    base_log_probs: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"]
) -> Divergences:
    """The textbook sums in float64: exact enough where the change is huge, which is the only place that uses them."""
    log_b = base_log_probs.double()
    log_t = (log_b + difference.double()).log_softmax(-1)
    log_b = log_b.log_softmax(-1)
    mixture = torch.logaddexp(log_b, log_t) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    kl = (log_t.exp() * (log_t - log_b)).sum(-1)
    reverse = (log_b.exp() * (log_b - log_t)).sum(-1)
    js = 0.5 * (log_t.exp() * (log_t - mixture)).sum(-1) + 0.5 * (log_b.exp() * (log_b - mixture)).sum(-1)
    return Divergences(kl.float(), reverse.float(), js.float(), (log_t - log_b).float())


def soft_capped_difference(
    base: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"], cap: float
) -> Float[Tensor, "token vocab"]:
    """cap·tanh((z + dz)/cap) - cap·tanh(z/cap), without cancellation: tanh x - tanh y = tanh(x - y)(1 - tanh x tanh y)."""
    before, after = torch.tanh(base / cap), torch.tanh((base + difference) / cap)
    return cap * torch.tanh(difference / cap) * (1 - before * after)


def top(
    values: Float[Tensor, "token vocab"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest per token, largest first; among equal values the lowest id wins, so that counts are reproducible."""
    ids = torch.sort(values, dim=-1, descending=True, stable=True).indices[:, :k]
    return values.gather(-1, ids), ids
