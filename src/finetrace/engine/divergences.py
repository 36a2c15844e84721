"""Per-token divergences between base and tuned next-token distributions, from the *difference* of the logits.

Two rounded logits subtracted lose a small fine-tune altogether. Here the difference is its own matrix product,
dz = (h_tuned - h_base) W^T, and every sum below has terms >= 0 only, so nothing cancels and nothing is ever negative:

    u = dz - E_b[dz]                      KL(base || tuned) = log1p(E_b[expm1(u) - u])
    r = u - KL(base || tuned)             the log ratio, log p_tuned - log p_base
    KL(tuned || base) = E_t[r - 1 + e^-r]

(E_b, E_t: expectation over the vocabulary under base and tuned.) All reductions are in float32 or better.
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
    growth = torch.expm1(u.clamp(max=_LARGE))
    reverse = torch.log1p((base_probs * (growth - u)).sum(-1))
    ratio = u - reverse[:, None]
    tuned_probs = base_probs * ratio.clamp(max=_LARGE).exp()
    kl = (tuned_probs * (ratio - 1 + torch.exp(-ratio.clamp(min=-_LARGE)))).sum(-1)
    half = torch.log1p(0.5 * torch.expm1(ratio.clamp(max=_LARGE)))
    js = 0.5 * (tuned_probs * (ratio - half)).sum(-1) - 0.5 * (base_probs * half).sum(-1)
    if bool(large.any()):
        exact = _plain(base_log_probs[large], u[large])
        kl[large], reverse[large], js[large], ratio[large] = (
            exact.kl,
            exact.reverse_kl,
            exact.js,
            exact.log_ratio,
        )
    return Divergences(kl.clamp_min_(0), reverse.clamp_min_(0), js.clamp_min_(0), ratio)


def _plain(base_log_probs: Float[Tensor, "token vocab"], u: Float[Tensor, "token vocab"]) -> Divergences:
    """The textbook sums in float64: exact enough where the change is huge, which is the only place that uses them."""
    log_b = base_log_probs.double()
    log_t = (log_b + u.double()).log_softmax(-1)
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
