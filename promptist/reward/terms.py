"""How raw measurements become the score of a rewrite (Hao et al. 2023, section 2.2, equations 2 to 4).

Pure arithmetic on the training side, so that a changed slope, offset or weight repaints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from promptist.errors import UserError


@dataclass
class TermsConfig:
    """The relevance hinge and the pictures of a prompt.

    `slope`, `offset`: relevance = min(slope * cosine - offset, 0). The defaults belong to CLIP ViT-L/14 (zero
    at cosine 0.28); another CLIP needs its own. `images` pictures per prompt, their noises drawn from a
    `bank` of that many keys.
    """

    slope: float = 20.0
    offset: float = 5.6
    images: int = 3
    bank: int = 16

    def __post_init__(self) -> None:
        if self.slope <= 0:
            raise UserError(
                f"reward.terms.slope is {self.slope}; it must be positive, else relevance is never rewarded"
            )
        if self.images < 1:
            raise UserError(
                f"reward.terms.images is {self.images}; at least one picture per prompt is needed"
            )
        if self.bank < self.images:
            raise UserError(
                f"reward.terms.bank is {self.bank} and reward.terms.images {self.images}; "
                "the pictures of a prompt have distinct noises, so the bank must hold at least as many"
            )


@dataclass(frozen=True, slots=True)
class Score:
    """`score = aesthetic + relevance`; the KL part is added per token in `promptist/rl/ppo.py`."""

    score: float
    aesthetic: float
    relevance: float


def relevance(cosine: float, terms: TermsConfig) -> float:
    """The hinge of one picture: min(slope * cosine - offset, 0), at most 0."""
    return min(terms.slope * cosine - terms.offset, 0.0)


def combine(
    cosine_y: Sequence[float], aesthetic_y: Sequence[float], aesthetic_x: Sequence[float], terms: TermsConfig
) -> Score:
    """The score of one rewrite from the measurements of its pictures.

    cosine_y [K], aesthetic_y [K]: pictures of the rewrite y against the user's prompt x; aesthetic_x [K]:
    pictures of x with the same noises. The hinge is taken per picture, before the mean. ValueError where the
    lengths differ or are 0.
    """
    if not len(cosine_y) == len(aesthetic_y) == len(aesthetic_x) > 0:
        raise ValueError(
            f"one prompt has {len(cosine_y)} cosines, {len(aesthetic_y)} and {len(aesthetic_x)} "
            "aesthetic scores; "
            "every noise key needs one of each"
        )
    f_relevance = fmean(relevance(cosine, terms) for cosine in cosine_y)
    f_aesthetic = fmean(y - x for y, x in zip(aesthetic_y, aesthetic_x, strict=True))
    return Score(score=f_aesthetic + f_relevance, aesthetic=f_aesthetic, relevance=f_relevance)


def noise_keys(seed: int, *visit: str | int, images: int, bank: int) -> list[int]:
    """The noise keys of one visit to one prompt: [images] distinct numbers below `bank`.

    A pure function of the run's seed and the counters in `visit` (such as iteration and row). Another visit
    draws other keys, so that the policy cannot learn one noise; a bank rather than fresh keys, so that plain
    pictures can be cached.
    """
    from promptist.rng import permutation

    return [int(k) for k in permutation(bank, seed, "noise-keys", *visit)[:images]]
