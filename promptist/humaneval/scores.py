"""Preference shares with their intervals, a sign test on majority votes, agreement, self-agreement, position bias.

All numbers that are about methods use the first showing of each pair. Pairs whose two pictures are identical were not
shown; they count as equally good for every rater wherever preferences are counted, and nowhere else.

*Intervals of shares* are 95 % percentile bootstrap intervals that resample prompts (within each set) and raters at
once, the "pigeonhole bootstrap" for crossed factors (Owen, Annals of Applied Statistics 1(2), 2007). Ratings of one
prompt, or by one rater, are not independent; counting them as if they were would make the intervals too narrow.

*The test* is on prompts, by majority vote: a prompt is won where more of its raters preferred the first method than the
second, lost where fewer did, else tied. Wins against losses are tested by the exact two-sided sign test, with the
Clopper-Pearson interval of the share won; p values of the comparisons are corrected by Holm's method.

*Agreement* is Krippendorff's alpha on the ordinal scale first < equal < second: that one rater prefers the first and
another the second is a worse disagreement than that one of them sees no difference. The nominal alpha, which does not
know that, stands beside it. Its interval resamples prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import krippendorff
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from promptist import rng
from promptist.errors import UserError
from promptist.humaneval.ratings import Rating
from promptist.humaneval.study import Pair, Study

ALL = "all"
VALUES = (1, 0, -1)  # first, equal, second
RESAMPLES, ALPHA_RESAMPLES = 10_000, 2_000

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Preference:
    """One comparison on one set, or on `ALL`; `title` is what readers see, the set's name where there is only one.
    Shares are of all ratings, in the order first, equal, second; `net` is the first's share minus the second's.
    `won`, `tied`, `lost` count prompts by the raters' vote. `p_holm` on the set `ALL` only, where the comparisons are
    a family."""

    first: str
    second: str
    set: str
    title: str
    prompts: int
    identical: int
    raters: int
    ratings: int
    shares: tuple[float, float, float]
    intervals: tuple[Bounds, Bounds, Bounds]
    net: float
    net_interval: Bounds
    won: int
    tied: int
    lost: int
    won_share: float | None
    won_interval: Bounds | None
    p: float | None
    p_holm: float | None = None


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha of one comparison over the `pairs` that at least two raters judged; None where it is not
    defined: fewer than two raters, or one same answer everywhere."""

    first: str
    second: str
    pairs: int
    ordinal: float | None
    ordinal_interval: Bounds | None
    nominal: float | None


@dataclass(frozen=True)
class Habit:
    """Of one rater, or of all (`rater` None): how often the same answer came again for a swapped pair, how often the
    left picture was preferred where one was (p of the exact test against one half), median seconds for a pair."""

    rater: int | None
    repeats: int
    same: int
    same_interval: Bounds | None
    decided: int
    left: int
    left_interval: Bounds | None
    left_p: float | None
    seconds: float


@dataclass(frozen=True)
class Scores:
    """All that `humaneval score` found."""

    study: str
    raters: list[int]
    planned_raters: int
    answered: int
    asked: int
    preferences: list[Preference]
    agreements: list[Agreement]
    habits: list[Habit]

    def overall(self) -> list[Preference]:
        """One preference for each comparison, on all its prompts."""
        return [found for found in self.preferences if found.set == ALL]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score(study: Study, ratings: Sequence[Rating]) -> Scores:
    """Aggregate `ratings` (of `read_ratings`). UserError where a comparison has none."""
    raters = sorted({rating.rater for rating in ratings})
    preferences, agreements = [], []
    for name in study.comparisons:
        pairs = [pair for pair in study.pairs if pair.comparison == name]
        values = _matrix(pairs, ratings, raters)
        rated: NDArray[np.bool_] = np.any(~np.isnan(values), axis=1)
        shown = np.array([not pair.identical for pair in pairs])
        if shown.any() and not rated[shown].any():
            raise UserError(f"nobody has rated a pair of {name} yet: wait for more ratings")
        sets = list(dict.fromkeys(pair.set for pair in pairs))
        for set_name in [ALL, *(sets if len(sets) > 1 else [])]:
            rows = np.array([set_name in (ALL, pair.set) for pair in pairs]) & rated
            if rows.any():
                preferences.append(_preference([p for p, row in zip(pairs, rows) if row], values[rows], set_name))
        agreements.append(_agreement(pairs[0], values[shown]))
    return Scores(
        study.hash, raters, len(study.orders), len(ratings), sum(len(study.orders[rater - 1]) for rater in raters),
        _with_holm(preferences), agreements, [_habit(ratings, rater) for rater in [None, *raters]],
    )  # fmt: skip


def _matrix(pairs: Sequence[Pair], ratings: Sequence[Rating], raters: Sequence[int]) -> NDArray[np.float64]:
    """`[pairs, raters]`: 1, 0, -1, or NaN where there is no answer; identical pairs 0."""
    values = np.full((len(pairs), len(raters)), np.nan)
    row = {pair.id: i for i, pair in enumerate(pairs)}
    for rating in ratings:
        if rating.pair in row and not rating.again:
            values[row[rating.pair], raters.index(rating.rater)] = rating.value
    values[[pair.identical for pair in pairs]] = 0
    return values


def _preference(pairs: Sequence[Pair], values: NDArray[np.float64], set_name: str) -> Preference:
    first, second = pairs[0].first, pairs[0].second
    is_value = np.stack([values == value for value in VALUES])  # [3, P, R]
    shares = is_value.sum((1, 2)) / (~np.isnan(values)).sum()
    drawn = resample(is_value, [pair.set for pair in pairs], "humaneval shares", first, second, set_name)
    # A lone vote against two "equally good" wins, one against one ties.
    votes = np.sign(np.nansum(values, axis=1))
    won, lost = int((votes > 0).sum()), int((votes < 0).sum())
    test = binomtest(won, won + lost) if won + lost else None
    return Preference(
        first, second, set_name, pairs[0].set if len({pair.set for pair in pairs}) == 1 else ALL,
        len(pairs), sum(pair.identical for pair in pairs), values.shape[1],
        int((~np.isnan(values)).sum()), (float(shares[0]), float(shares[1]), float(shares[2])),
        (_middle(drawn[:, 0]), _middle(drawn[:, 1]), _middle(drawn[:, 2])),
        float(shares[0] - shares[2]), _middle(drawn[:, 0] - drawn[:, 2]),
        won, len(pairs) - won - lost, lost,
        won / (won + lost) if test else None, _exact(won, won + lost), float(test.pvalue) if test else None,
    )  # fmt: skip


def resample(
    is_value: NDArray[np.bool_], strata: Sequence[str], *key: str | int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Shares `[resamples, 3]` of first, equal, second when the prompts of each stratum, and the raters, are drawn with
    replacement. `is_value [3, P, R]` has no entry where a rating is missing. Draws in which nobody rated anything are
    left out."""
    generator = rng.generator(*key)
    prompts = np.zeros((resamples, len(strata)))
    for name in dict.fromkeys(strata):
        rows = np.flatnonzero([stratum == name for stratum in strata])
        prompts[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), resamples)
    n = is_value.shape[2]
    raters = generator.multinomial(n, np.full(n, 1 / n), resamples)
    counts = np.stack([((prompts @ of_value) * raters).sum(1) for of_value in is_value.astype(float)], 1)
    totals = counts.sum(1, keepdims=True)
    return counts[totals[:, 0] > 0] / totals[totals[:, 0] > 0]


def _middle(values: NDArray[np.float64]) -> Bounds:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _exact(count: int, of: int) -> Bounds | None:
    """Clopper-Pearson, 95 %."""
    if not of:
        return None
    found = binomtest(count, of).proportion_ci(0.95, "exact")
    return float(found.low), float(found.high)


def _with_holm(preferences: Sequence[Preference]) -> list[Preference]:
    """Holm's step-down correction over the comparisons on all prompts (Holm, Scand. J. Statistics 6, 1979)."""
    family = sorted((found.p, i) for i, found in enumerate(preferences) if found.set == ALL and found.p is not None)
    corrected: dict[int, float] = {}
    largest = 0.0
    for place, (p, i) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - place)))
        corrected[i] = largest
    return [replace(found, p_holm=corrected.get(i)) for i, found in enumerate(preferences)]


def _agreement(pair: Pair, values: NDArray[np.float64]) -> Agreement:
    counts = np.stack([(values == value).sum(1) for value in VALUES], 1) if len(values) else np.zeros((0, 3), int)
    counts = counts[counts.sum(1) > 1]
    ordinal = alpha(counts, "ordinal")
    interval = None
    if ordinal is not None:
        rows = rng.generator("humaneval alpha", pair.first, pair.second).integers(
            0, len(counts), (ALPHA_RESAMPLES, len(counts))
        )
        drawn = [found for found in (alpha(counts[row], "ordinal") for row in rows) if found is not None]
        interval = _middle(np.array(drawn)) if drawn else None
    return Agreement(pair.first, pair.second, len(counts), ordinal, interval, alpha(counts, "nominal"))


def alpha(counts: NDArray[np.int_], level: Any) -> float | None:
    """Krippendorff's alpha of `counts [units, values]`, how many raters gave which value; None where it is not
    defined."""
    pairable = counts[counts.sum(1) > 1]
    if np.count_nonzero(pairable.sum(0)) < 2:
        return None
    return float(krippendorff.alpha(value_counts=pairable, level_of_measurement=level))


def _habit(ratings: Sequence[Rating], rater: int | None) -> Habit:
    own = [rating for rating in ratings if rater in (None, rating.rater)]
    once = {(rating.rater, rating.pair): rating for rating in own if not rating.again}
    twice = [(once[r.rater, r.pair], r) for r in own if r.again and (r.rater, r.pair) in once]
    same = sum(a.value == b.value for a, b in twice)
    decided = [rating for rating in once.values() if rating.choice != "equal"]
    left = sum(rating.choice == "left" for rating in decided)
    return Habit(
        rater, len(twice), same, _exact(same, len(twice)), len(decided), left, _exact(left, len(decided)),
        float(binomtest(left, len(decided)).pvalue) if decided else None,
        float(np.median([rating.seconds for rating in own])),
    )  # fmt: skip
