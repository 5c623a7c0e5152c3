"""How raw measurements become the score of a rewrite (Hao et al. 2023, section 2.2, equations 2 to 4), and the two
remedies that act on it (docs/remedies.md).

Pure arithmetic on the training side, so that a changed slope, offset, weight or gate repaints nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from promptist.errors import UserError


@dataclass
class GateConfig:
    """The relevance gate: an aesthetic gain counts in full where the picture of y is as relevant to x as the plain
    prompt's picture, not at all where its cosine is `tolerance` lower, and in proportion between.
    """

    tolerance: float

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise UserError(
                f"reward.terms.gate.tolerance is {self.tolerance}; it must be above 0: the drop in cosine over which "
                "the credit falls to nothing, such as the standard deviation of plain prompts' cosines"
            )


@dataclass
class FidelityConfig:
    """The fidelity term: `price` is the reward per unit of cosine that the picture of y has more than the plain
    prompt's at the same noise, and the charge per unit that it has less. Changes count up to `limit` either way.
    """

    price: float
    limit: float

    def __post_init__(self) -> None:
        if not (self.price > 0 and self.limit > 0):
            raise UserError(
                f"reward.terms.fidelity has price {self.price} and limit {self.limit}; both must be above 0, and null "
                "switches the term off"
            )


@dataclass
class TermsConfig:
    """The relevance hinge, the pictures of a prompt, and the remedies, which are off by default.

    `slope`, `offset`: relevance = min(slope * cosine - offset, 0). The defaults belong to CLIP ViT-L/14 (zero
    at cosine 0.28); another CLIP needs its own. `images` pictures per prompt, their noises drawn from a
    `bank` of that many keys. `gate` and `fidelity` change what is learned from, never the score.
    """

    slope: float = 20.0
    offset: float = 5.6
    images: int = 3
    bank: int = 16
    gate: GateConfig | None = None
    fidelity: FidelityConfig | None = None

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

    @property
    def remedied(self) -> bool:
        """Whether training learns from something else than the paper's score."""
        return self.gate is not None or self.fidelity is not None


class Hinge(Protocol):
    """Slope and offset of a scorer's relevance: the training's, or those of a held-out scorer."""

    @property
    def slope(self) -> float: ...
    @property
    def offset(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Score:
    """`score = aesthetic + relevance`; the KL part is added per token in `promptist/rl/ppo.py`."""

    score: float
    aesthetic: float
    relevance: float


def relevance(cosine: float, terms: Hinge) -> float:
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


def gated(gain: float, change: float, gate: GateConfig) -> float:
    """The aesthetic gain of one picture that counts: `gain * min(max(1 + change / tolerance, 0), 1)`; a loss counts in
    full. `change`: the cosine of the picture of y with x, less that of the picture of x at the same noise.
    """
    return gain if gain <= 0 else gain * min(max(1.0 + change / gate.tolerance, 0.0), 1.0)


def learned_score(
    cosine_y: Sequence[float],
    aesthetic_y: Sequence[float],
    cosine_x: Sequence[float],
    aesthetic_x: Sequence[float],
    terms: TermsConfig,
) -> float:
    """What training learns from: the score of `combine`, with the gate and the fidelity term where they are on.

    cosine_x [K]: pictures of x against x, at the noises of the others. Both act per picture, before the mean.
    ValueError where the lengths differ or are 0.
    """
    plain = combine(cosine_y, aesthetic_y, aesthetic_x, terms)
    if not terms.remedied:
        return plain.score
    changes = [y - x for y, x in zip(cosine_y, cosine_x, strict=True)]
    learned = plain.aesthetic
    if terms.gate is not None:
        gains = [y - x for y, x in zip(aesthetic_y, aesthetic_x, strict=True)]
        learned = fmean(gated(gain, change, terms.gate) for gain, change in zip(gains, changes, strict=True))
    learned += plain.relevance
    if terms.fidelity is not None:
        price, limit = terms.fidelity.price, terms.fidelity.limit
        learned += price * fmean(min(max(change, -limit), limit) for change in changes)
    return learned


def noise_keys(seed: int, *visit: str | int, images: int, bank: int) -> list[int]:
    """The noise keys of one visit to one prompt: [images] distinct numbers below `bank`.

    A pure function of the run's seed and the counters in `visit` (such as iteration and row). Another visit
    draws other keys, so that the policy cannot learn one noise; a bank rather than fresh keys, so that plain
    pictures can be cached.
    """
    from promptist.rng import permutation

    return [int(k) for k in permutation(bank, seed, "noise-keys", *visit)[:images]]
