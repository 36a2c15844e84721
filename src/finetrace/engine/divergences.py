"""Per-token divergences between base and tuned next-token distributions, from the *difference* of the logits.

Two rounded logits subtracted lose a small fine-tune altogether. Here the difference is its own matrix product,
dz = (h_tuned - h_base) W^T, and with g(x) = e^x - 1 - x and h(x) = 1 + (x - 1) e^x, both >= 0, every sum below
has terms >= 0 only, so that nothing cancels and nothing is ever negative:

    u = dz - E_b[dz]                        KL(base || tuned) = log1p(E_b[g(u)])
    r = u - KL(base || tuned)               the log ratio, log p_tuned - log p_base
    KL(tuned || base) = E_b[h(r)]           JS = E_b[a expm1(r) - L (2 + expm1(r))] / 2,  a = r / 2, L = log cosh a

(E_b: expectation over the vocabulary under the base.) All reductions are in float32 or better. Against
float64, token by token (tests/engine/test_divergences.py): within 2e-6 relative from KL 5e-9 to 12 nats, 6e-5 at 5e-11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Beyond this |u|, exp leaves float32's range; such tokens are few and are done over again in float64.
_LARGE = 60.0
# Numbers in a block of rows: 1 MB of float32, so that the dozen passes over it stay in a CPU's cache.
_BLOCK = 2**18
# Tokens of the vocabulary whose maximum decides whether `top` looks at them.
_WIDTH = 256

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Divergences:
    """One value per token, in nats, float32. kl: KL(tuned || base). reverse_kl: KL(base || tuned). js: Jensen-Shannon.

    shift: what the difference of a token's logits has to lose to be its log ratio, log p_tuned - log p_base.
    """

    kl: Float[Tensor, "token"]
    reverse_kl: Float[Tensor, "token"]
    js: Float[Tensor, "token"]
    shift: Float[Tensor, "token"]


def divergences(
    base_log_probs: Float[Tensor, "token vocab"],
    difference: Float[Tensor, "token vocab"],
    kernel: Kernel | None = None,
) -> Divergences:
    """Divergences from base log-probabilities and the difference of the logits (tuned - base), both float32.

    kernel: `sums` or a compiled form of it (`compiled_sums`); None goes through `sums` a cache-sized block at a time.
    """
    rows = max(1, _BLOCK // base_log_probs.shape[-1])
    if kernel is None and base_log_probs.device.type == "cpu" and len(base_log_probs) > rows:
        blocks = zip(base_log_probs.split(rows), difference.split(rows), strict=True)
        found = torch.cat([sums(b, d) for b, d in blocks], 1)
    else:
        found = (kernel or sums)(base_log_probs, difference)
    kl, reverse, js, shift, largest = found
    large = largest > _LARGE
    if bool(large.any()):
        kl[large], reverse[large], js[large], shift[large] = _plain(base_log_probs[large], difference[large])
    return Divergences(kl.clamp_min_(0), reverse.clamp_min_(0), js.clamp_min_(0), shift)


def sums(
    base_log_probs: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"]
) -> Float[Tensor, "5 token"]:
    """kl, reverse_kl, js, shift, and the largest |u|, beyond which the others are not to be used."""
    base_probs = base_log_probs.exp()
    mean = (base_probs * difference).sum(-1, keepdim=True)
    u = difference - mean
    largest = u.abs().amax(-1)
    u = u.clamp(-_LARGE, _LARGE)
    reverse = torch.log1p((base_probs * _excess(u)).sum(-1, keepdim=True))
    ratio = u - reverse
    growth, half = torch.expm1(ratio), ratio / 2
    kl = (base_probs * _weighted(ratio, growth)).sum(-1)
    root = half.exp()
    log_cosh = torch.log1p((growth / (root + 1)).square() / (2 * root))
    js = 0.5 * (base_probs * (half * growth - log_cosh * (2 + growth))).sum(-1)
    return torch.stack([kl, reverse[:, 0], js, (mean + reverse)[:, 0], largest])


@cache
def compiled_sums() -> Kernel:
    """`sums` through torch.compile: one fused loop. Needs a C++ compiler on a CPU; the figures' last bits differ."""
    return torch.compile(sums, dynamic=True)


def _excess(x: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """g(x) = e^x - 1 - x = x^2/2! + x^3/3! + ...: near 0 by the series, where the difference would be all rounding."""
    near = _series(x, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320))
    return torch.where(x.abs() < 0.5, near, torch.expm1(x) - x)


def _weighted(
    x: Float[Tensor, "token vocab"], growth: Float[Tensor, "token vocab"]
) -> Float[Tensor, "token vocab"]:
    """h(x) = 1 + (x - 1) e^x = x^2 1/2! + x^3 2/3! + x^4 3/4! + ...: near 0 by the series. growth: expm1(x)."""
    near = _series(x, (1 / 2, 2 / 6, 3 / 24, 4 / 120, 5 / 720, 6 / 5040, 7 / 40320, 8 / 362880))
    return torch.where(x.abs() < 0.5, near, x + (x - 1) * growth)


def _series(x: Float[Tensor, "token vocab"], coefficients: tuple[float, ...]) -> Float[Tensor, "token vocab"]:
    """x^2 (c0 + c1 x + c2 x^2 + ...), by Horner's rule."""
    total = coefficients[-1] * x
    for coefficient in reversed(coefficients[1:-1]):
        total = (total + coefficient) * x
    return (total + coefficients[0]) * x * x


def _plain(
    base_log_probs: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The textbook sums in float64: exact enough where the change is huge, which is the only place that uses them."""
    log_b = base_log_probs.double()
    raw = log_b + difference.double()
    log_t, log_b = raw.log_softmax(-1), log_b.log_softmax(-1)
    mixture = torch.logaddexp(log_b, log_t) - torch.log(torch.tensor(2.0, dtype=torch.float64))
    kl = (log_t.exp() * (log_t - log_b)).sum(-1)
    reverse = (log_b.exp() * (log_b - log_t)).sum(-1)
    js = 0.5 * (log_t.exp() * (log_t - mixture)).sum(-1) + 0.5 * (log_b.exp() * (log_b - mixture)).sum(-1)
    return kl.float(), reverse.float(), js.float(), raw.logsumexp(-1).float()


def soft_capped_difference(
    base: Float[Tensor, "token vocab"], difference: Float[Tensor, "token vocab"], cap: float
) -> Float[Tensor, "token vocab"]:
    """cap·tanh((z + dz)/cap) - cap·tanh(z/cap), without cancellation: tanh x - tanh y = tanh(x - y)(1 - tanh x tanh y)."""
    before, after = torch.tanh(base / cap), torch.tanh((base + difference) / cap)
    return cap * torch.tanh(difference / cap) * (1 - before * after)


def top(
    values: Float[Tensor, "token vocab"], k: int
) -> tuple[Float[Tensor, "token k"], Int[Tensor, "token k"]]:
    """The k largest per token, largest first; among equal values the lowest id wins, so that counts are reproducible.

    The k blocks of largest maximum, lower ids first, hold them all: only those are looked through.
    """
    blocks = values.shape[-1] // _WIDTH
    if blocks <= 2 * k:
        ids = _top_ids(values, k)
        return values.gather(-1, ids), ids
    largest = values[:, : blocks * _WIDTH].unflatten(-1, (blocks, _WIDTH)).amax(-1)
    chosen = _top_ids(largest, k).sort(-1).values
    inside = torch.arange(_WIDTH, device=values.device)
    rest = torch.arange(blocks * _WIDTH, values.shape[-1], device=values.device)
    places = torch.cat([(chosen[..., None] * _WIDTH + inside).flatten(1), rest.expand(len(values), -1)], 1)
    ids = places.gather(-1, _top_ids(values.gather(-1, places), k))
    return values.gather(-1, ids), ids


def _top_ids(values: Float[Tensor, "token vocab"], k: int) -> Int[Tensor, "token k"]:
    """`top`'s ids, looking through everything. topk breaks ties as it likes: those across its edge are chosen anew."""
    size = values.shape[-1]
    found = values.topk(min(k + 1, size))
    ids = found.indices[:, :k]
    if k < size:
        edge = found.values[:, k - 1 : k]
        tied = _same(found.values[:, k:], edge)[:, 0]
        if bool(tied.any()):
            at_edge = _same(values[tied], edge[tied])
            numbers = torch.arange(size, dtype=torch.int32, device=values.device)
            lowest = -torch.where(at_edge, -numbers, -size).topk(k).values.long()
            slot = torch.arange(k, device=values.device)
            beyond = slot - (~_same(found.values[tied, :k], edge[tied])).sum(-1, keepdim=True)
            ids[tied] = torch.where(beyond < 0, ids[tied], lowest.gather(-1, beyond.clamp(min=0)))
    ids = ids.sort(-1).values
    order = values.gather(-1, ids).sort(dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _same(values: Float[Tensor, "token any"], edge: Float[Tensor, "token 1"]) -> Bool[Tensor, "token any"]:
    """Equal, NaN to NaN too: topk and sort put it above everything."""
    return (values == edge) | (values.isnan() & edge.isnan())
