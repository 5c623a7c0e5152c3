"""Intervals for a mean difference that depends on two random draws: the prompts, and the trainings.

`D [P, R]` is (method - baseline) of prompt p and training r. Every training rewrote the same prompts, so the two
factors are crossed:

    D[p, r] = mu + a_p + b_r + e_pr,    Var = v_P, v_R, v_E

With R = 1 the trainings are taken as they are, and the intervals are the paired t and the BCa bootstrap over prompts.
`docs/statistics.md` derives what happens with R > 1, and says why it is not the textbook's Satterthwaite formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from promptist.evaluation.results import CONFIDENCE, NO_INTERVAL, Interval
from promptist.rng import generator

Array = NDArray[np.float64]

RESAMPLES = 10_000
_BATCH = 1000  # resamples drawn at once: bounds the memory
_DIGITS = 9  # of a deviation in standard deviations: what a BLAS may sum in another order is beyond


@dataclass(frozen=True)
class MeanSquares:
    """Of the two-way layout with one observation per cell; expectations R v_P + v_E, P v_R + v_E and v_E."""

    prompts: float
    trainings: float
    residual: float


def mean_squares(differences: Array) -> MeanSquares:
    """Two-way analysis of variance of `D [P, R]`, P and R at least 2."""
    prompts, trainings = differences.shape
    mean = differences.mean()
    row, column = differences.mean(1), differences.mean(0)
    rest = differences - row[:, None] - column + mean
    return MeanSquares(
        float(trainings * np.sum((row - mean) ** 2) / (prompts - 1)),
        float(prompts * np.sum((column - mean) ** 2) / (trainings - 1)),
        float(np.sum(rest**2) / ((prompts - 1) * (trainings - 1))),
    )


def training_variance(differences: Array) -> float:
    """Unbiased estimate of v_R, (MS_R - MS_E) / P; it may be negative. `D [P, R]`, P and R at least 2."""
    squares = mean_squares(differences)
    return (squares.trainings - squares.residual) / len(differences)


@dataclass(frozen=True)
class Trainings:
    """What a comparison has to reckon with from its trainings: `variance` v_R between them, known as well as `df`
    degrees of freedom allow."""

    variance: float = 0.0
    df: int = 1


def analytic_interval(differences: Array, trainings: Trainings, confidence: float = CONFIDENCE) -> Interval:
    """mean -+ sqrt(t_{P-1}^2 s^2 / P + t_df^2 v_R / R), s the standard deviation of the prompts' means over trainings.

    With R = 1 the paired t interval. Each part keeps the quantile of its own degrees of freedom (Banerjee 1960: the
    coverage is then at least the nominal one, whatever the ratio of the parts). NaN if P < 2.
    """
    if len(differences) < 2:
        return NO_INTERVAL
    mean, half = float(differences.mean()), _half(differences, trainings, 1 - confidence)
    return Interval(mean - half, mean + half)


def p_value(differences: Array, trainings: Trainings) -> float:
    """The level at which `analytic_interval` just touches 0; two-sided. NaN if P < 2."""
    prompts = len(differences)
    if prompts < 2:
        return float("nan")
    mean = abs(float(differences.mean()))
    row = differences.mean(1)
    error = float(np.std(row, ddof=1) / np.sqrt(prompts))
    if mean <= 1e-12 * float(np.max(np.abs(differences))):
        return 1.0
    if trainings.variance == 0 or error == 0:
        df, scale = (
            (prompts - 1, error) if trainings.variance == 0 else (trainings.df, _training_error(differences, trainings))
        )
        return float(2 * stats.t.sf(mean / scale, df)) if scale > 0 else 0.0
    smallest = -700.0
    if _half(differences, trainings, float(np.exp(smallest))) < mean:
        return 0.0
    return float(
        np.exp(optimize.brentq(lambda x: _half(differences, trainings, float(np.exp(x))) - mean, smallest, 0.0))
    )


def _training_error(differences: Array, trainings: Trainings) -> float:
    return float(np.sqrt(trainings.variance / differences.shape[1]))


def _half(differences: Array, trainings: Trainings, alpha: float) -> float:
    prompts = len(differences)
    error = np.std(differences.mean(1), ddof=1) / np.sqrt(prompts)
    arms = stats.t.isf(alpha / 2, prompts - 1) * error
    if trainings.variance > 0:
        arms = np.hypot(arms, stats.t.isf(alpha / 2, trainings.df) * _training_error(differences, trainings))
    return float(arms)


class Bootstrap:
    """Bootstrap of the mean of several comparisons that have the same numbers of prompts and trainings.

    `differences` is a list of C arrays `[P, R]`. Prompts are drawn P of P; all comparisons see the same draws. With
    R > 1 there is a second drawing, the pigeonhole bootstrap (Owen 2007): prompts, and independently R - 1 of the R
    trainings. (R - 1 instead of R undoes the factor (R - 1) / R by which resampling R draws is too narrow: Rao and Wu
    1988.) Memory is about `RESAMPLES * C * 16` bytes.
    """

    def __init__(self, differences: Sequence[Array], seed: int, resamples: int = RESAMPLES) -> None:
        data = np.stack([np.asarray(d, np.float64) for d in differences], axis=1)  # [P, C, R]
        prompts, count, trainings = data.shape
        self.mean = data.mean((0, 2))
        self.prompts, self.trainings = prompts, trainings
        centred = data - self.mean[:, None]
        self.scale = np.sqrt(np.mean(centred**2, axis=(0, 2)))
        # What is left of equal differences is rounding, nothing to resample.
        self.scale[self.scale <= 1e-12 * np.max(np.abs(data), axis=(0, 2), initial=0.0)] = 0.0
        unit = np.divide(centred, self.scale[:, None], out=np.zeros_like(data), where=self.scale[:, None] > 0)
        self.rows = unit.mean(2)  # [P, C]
        by_prompt, pigeonhole = [], []
        for start in range(0, resamples if prompts > 1 else 0, _BATCH):
            size = min(_BATCH, resamples - start)
            drawn = _counts(prompts, prompts, seed, start)[:size].astype(np.float64)
            means = (drawn @ unit.reshape(prompts, -1) / prompts).reshape(size, count, trainings)
            by_prompt.append(means.mean(2))
            if trainings > 1:
                weights = _counts(trainings, trainings - 1, seed, start)[:size] / (trainings - 1)
                pigeonhole.append(np.einsum("bcr,br->bc", means, weights))
        # Sorted: quantiles are then a look-up.
        self.by_prompt = _sorted(by_prompt)
        self.pigeonhole = _sorted(pigeonhole)

    def interval(self, index: int, trainings: Trainings, confidence: float = CONFIDENCE) -> Interval:
        """Of comparison `index`. NaN if P < 2.

        R = 1: BCa (Efron 1987). R > 1: at each end the farther of the pigeonhole bootstrap's percentile, and of the
        BCa interval over prompts put together with Student's t for the few trainings by the square root of the sum of
        squares (MOVER, Zou and Donner 2008): resampling R = 3 trainings alone could never reach beyond the best and
        the worst of them.
        """
        if self.prompts < 2:
            return NO_INTERVAL
        mean, scale = float(self.mean[index]), float(self.scale[index])
        tail = (1 - confidence) / 2
        low, high = (
            (_quantile(self.by_prompt[:, index], level) for level in self._bca_levels(index, tail))
            if scale > 0
            else (0.0, 0.0)
        )
        below, above = scale * max(-low, 0.0), scale * max(high, 0.0)
        if self.trainings == 1:
            return Interval(mean + scale * low, mean + scale * high)
        if trainings.variance > 0:
            arm = stats.t.isf(tail, trainings.df) * np.sqrt(trainings.variance / self.trainings)
            below, above = float(np.hypot(below, arm)), float(np.hypot(above, arm))
        drawn = self.pigeonhole[:, index]
        below = max(below, -scale * _quantile(drawn, tail))
        above = max(above, scale * _quantile(drawn, 1 - tail))
        return Interval(mean - below, mean + above)

    def _bca_levels(self, index: int, tail: float) -> tuple[float, float]:
        """Efron 1987, equations 6.6 and 6.8; the acceleration of a mean is its skewness / (6 sqrt(P))."""
        means, row = self.by_prompt[:, index], self.rows[:, index]
        squares = np.sum(row**2)
        if squares == 0:
            return tail, 1 - tail
        at_most = np.searchsorted(means, 0.0, "right")
        share = (np.searchsorted(means, 0.0, "left") + at_most) / (2 * len(means))
        bias = stats.norm.ppf(np.clip(share, 0.5 / len(means), 1 - 0.5 / len(means)))
        acceleration = np.sum(row**3) / (6 * squares**1.5)

        def level(z: float) -> float:
            shifted = bias + z
            shrink = 1 - acceleration * shifted
            # Beyond its pole the correction has no meaning: the farthest resample is the best there is.
            return float(stats.norm.cdf(bias + shifted / shrink)) if shrink > 0 else float(shifted > 0)

        return level(float(stats.norm.ppf(tail))), level(float(stats.norm.isf(tail)))


def _sorted(batches: list[Array]) -> Array:
    return np.sort(np.round(np.concatenate(batches), _DIGITS), axis=0) if batches else np.zeros((0, 0))


def _quantile(ordered: Array, level: float) -> float:
    """Linear between the order statistics, as numpy's default."""
    place = level * (len(ordered) - 1)
    i = min(int(place), len(ordered) - 2)
    return float(ordered[i] + (place - i) * (ordered[i + 1] - ordered[i]))


@lru_cache(maxsize=64)
def _counts(n: int, draws: int, seed: int, start: int) -> NDArray[np.uint16]:
    """How often each of n things is drawn in `draws` draws with replacement, for `_BATCH` resamples: `[_BATCH, n]`."""
    chosen = generator("bootstrap", seed, n, draws, start).integers(0, n, (_BATCH, draws))
    chosen += np.arange(_BATCH)[:, None] * n
    return np.bincount(chosen.ravel(), minlength=_BATCH * n).reshape(_BATCH, n).astype(np.uint16)
