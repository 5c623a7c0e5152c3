"""Remedies against what plain PPO does wrong: pure functions, each documented with its source in docs/remedies.md.

The relevance gate and the fidelity term act on the measurements of a picture and stand in `promptist/reward/terms.py`,
the group baseline acts on tensors and stands in `promptist/rl/ppo.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from promptist.data.modifiers import modifiers
from promptist.reward.terms import TermsConfig
from promptist.rl.journal import learned_of
from promptist.rl.records import Rollout

KL_ERROR_LIMIT = 0.2
"""One iteration moves the KL coefficient as if KL were at most this share off its target (Ziegler et al. 2019)."""


def diversity_rewards(suffixes: Sequence[Hashable], coef: float) -> list[float]:
    """`-coef * log(count)` for each rewrite of the whole batch, where `count` of its n rewrites add the same suffix.

    0 for an addition that no other rewrite makes. With p = count / n this is `-coef * log p` less a constant, the
    reward whose policy gradient is that of coef times the entropy of the suffixes over the batch.
    """
    counts = Counter(suffixes)
    return [-coef * math.log(counts[suffix]) for suffix in suffixes]


def learned_scores(rollouts: Sequence[Rollout], terms: TermsConfig, diversity_coef: float) -> list[float]:
    """What the update learns from, `[batch]` by row: score of each of an iteration's measured rollouts of all ranks,
    with the remedies that are on. The KL part is added per token."""
    ordered = sorted(rollouts, key=lambda r: r.row)
    scores = [learned_of(r, terms) for r in ordered]
    if diversity_coef > 0:
        rarity = diversity_rewards([modifiers(r.x, r.y) for r in ordered], diversity_coef)
        scores = [score + bonus for score, bonus in zip(scores, rarity, strict=True)]
    return scores


def next_kl_coef(coef: float, kl: float, target: float, rewrites: int, horizon: float) -> float:
    """The KL coefficient of the next iteration: a proportional controller of its logarithm (Ziegler et al. 2019,
    section 2.2).

    `kl`: mean KL of an iteration's rewrites to the SFT model, nats per rewrite, `target` the same; a KL that stays 20 %
    or more above it multiplies the coefficient by about e^0.2 in `horizon` rewrites.
    """
    error = min(max(kl / target - 1.0, -KL_ERROR_LIMIT), KL_ERROR_LIMIT)
    return coef * (1.0 + error * rewrites / horizon)
