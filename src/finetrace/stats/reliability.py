"""How well a group of top-scored weights can be found again, and so how far an overlap can go at all."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from finetrace.core.errors import BadInput

_MOST = 1 - 1e-9
LOWEST_CEILING = 0.5
"""Below this noise ceiling a group is mostly noise and is not interpreted."""


def jaccard_of_overlap(share: float) -> float:
    """|A and B| / |A or B| of two equally large sets that share this share of their members."""
    return share / (2 - share)


def overlap_of_jaccard(jaccard: float) -> float:
    """The share of members that two equally large sets have in common."""
    return 2 * jaccard / (1 + jaccard)


def noise_ceiling(jaccard: float, fraction: float) -> float:
    """The Jaccard index expected of two whole calibration sets, from that of two halves of one.

    jaccard: of the top `fraction` by two halves' scores. Any overlap of groups that were found with as many samples is to
    be read as a share of this. The halves' correlation is found under a Gaussian copula (only ranks matter), stepped up to
    twice the samples by Spearman and Brown's 2 r / (1 + r), and turned back into an overlap. At chance or below: chance.
    """
    if not 0 < fraction < 1:
        raise BadInput(f"A group's fraction lies between 0 and 1, not {fraction}.")
    if not 0 <= jaccard <= 1:
        raise BadInput(f"A Jaccard index lies between 0 and 1, not {jaccard}.")
    chance = jaccard_of_overlap(fraction)
    if jaccard <= chance:
        return chance
    if jaccard >= jaccard_of_overlap(_overlap(_MOST, fraction)):
        return jaccard
    share = overlap_of_jaccard(jaccard)
    found = optimize.brentq(lambda r: _overlap(r, fraction) - share, 0.0, _MOST, xtol=1e-12)
    r = float(np.asarray(found).item())
    return jaccard_of_overlap(_overlap(2 * r / (1 + r), fraction))


def _overlap(correlation: float, fraction: float) -> float:
    """The share in common of the top `fraction` by two normal scores of this correlation."""
    cut = float(special.ndtri(fraction))
    # P(both below h) = Phi(h) - 2 T(h, sqrt((1 - r) / (1 + r))), Owen's T.
    both = fraction - 2 * float(special.owens_t(cut, np.sqrt((1 - correlation) / (1 + correlation))))
    return both / fraction
