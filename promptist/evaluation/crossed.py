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
from scipy import special

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


def typical_training_variance(family: Sequence[Array]) -> float:
    """v_R as it is usual in a family of comparisons `D [P, R]`: the geometric mean of the variances of the trainings'
    means, s^2 = MS_R / P, less that of what the residual puts into them, MS_E / P.

    On the log scale one unsteady set does not speak for all (Smyth 2004 shrinks such variances there, too);
    exp(log(d / 2) - digamma(d / 2)) undoes the bias of the logarithm of a chi-square with d = R - 1 degrees of freedom.
    Comparisons without any spread between trainings, whose logarithm would say it all, are left out. 0 for an empty
    family.
    """
    logs, rests = [], []
    for differences in family:
        squares, half = mean_squares(differences), (differences.shape[1] - 1) / 2
        if squares.trainings > 1e-6 * squares.residual > 0:
            logs.append(np.log(squares.trainings / len(differences)) + np.log(half) - special.digamma(half))
            rests.append(np.log(squares.residual / len(differences)))
    return max(float(np.exp(np.mean(logs)) - np.exp(np.mean(rests))), 0.0) if logs else 0.0


@dataclass(frozen=True)
class Spread:
    """What a comparison takes from its family (`statistics.spreads`).

    `prompts`: the variance between prompts (of the means over trainings) is reckoned to be at least this.
    `trainings`: v_R, known as well as `df` degrees of freedom allow.
    """

    prompts: float = 0.0
    trainings: float = 0.0
    df: int = 1


def prompt_variance(differences: Array) -> float:
    """Variance between the prompts' means over trainings; 0 if P < 2."""
    return float(np.var(differences.mean(1), ddof=1)) if len(differences) > 1 else 0.0


def degrees_of_freedom(variance: float, prompts: int, trainings: int, spread: Spread) -> float:
    """Of the variance of the mean, v / P + v_R / R, after Satterthwaite 1946; v is known with P - 1."""
    parts = variance / prompts, spread.trainings / trainings
    if parts[1] == 0:
        return prompts - 1
    return sum(parts) ** 2 / (parts[0] ** 2 / (prompts - 1) + parts[1] ** 2 / spread.df)


def t_quantile(tail: float, df: float) -> float:
    """Student's t beyond which `tail` of the distribution lies."""
    return -float(special.stdtrit(df, tail))


def analytic_interval(differences: Array, spread: Spread, confidence: float = CONFIDENCE) -> Interval:
    """mean -+ t sqrt(v / P + v_R / R), v the variance of the prompts' means over trainings, t Student's quantile with
    `degrees_of_freedom`. With R = 1 and nothing from a family the paired t interval. NaN if P < 2."""
    if len(differences) < 2:
        return NO_INTERVAL
    mean, half = float(differences.mean()), _half(differences, spread, 1 - confidence)
    return Interval(mean - half, mean + half)


def p_value(differences: Array, spread: Spread) -> float:
    """The level at which `analytic_interval` just touches 0; two-sided. NaN if P < 2."""
    if len(differences) < 2:
        return float("nan")
    mean = abs(float(differences.mean()))
    if mean <= 1e-12 * float(np.max(np.abs(differences))):
        return 1.0
    error, df = _error(differences, spread)
    return float(2 * special.stdtr(df, -mean / error)) if error > 0 else 0.0


def _half(differences: Array, spread: Spread, alpha: float) -> float:
    error, df = _error(differences, spread)
    return float(t_quantile(alpha / 2, df) * error) if error > 0 else 0.0


def _error(differences: Array, spread: Spread) -> tuple[float, float]:
    """Standard error of the mean and its degrees of freedom."""
    prompts, trainings = differences.shape
    variance = max(prompt_variance(differences), spread.prompts)
    error = float(np.sqrt(variance / prompts + spread.trainings / trainings))
    return error, degrees_of_freedom(variance, prompts, trainings, spread) if error > 0 else prompts - 1


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

    def interval(self, index: int, spread: Spread, confidence: float = CONFIDENCE) -> Interval:
        """Of comparison `index`. NaN if P < 2.

        R = 1: BCa (Efron 1987), stretched where the family's variance between prompts is the larger one. R > 1: at
        each end the farther of the pigeonhole bootstrap's percentile, and of that BCa interval over prompts put
        together with Student's t for the few trainings by the square root of the sum of squares (MOVER, Zou and Donner
        2008), both on the degrees of freedom of the analytic interval: resampling R = 3 trainings alone could never
        reach beyond the best and the worst of them.
        """
        if self.prompts < 2:
            return NO_INTERVAL
        mean, scale, tail = float(self.mean[index]), float(self.scale[index]), (1 - confidence) / 2
        if scale == 0:
            return Interval(mean, mean)
        own = float(np.var(self.rows[:, index], ddof=1)) * scale**2
        variance = max(own, spread.prompts)
        stretch = scale * float(np.sqrt(variance / own) if own > 0 else 1.0)
        low, high = (_quantile(self.by_prompt[:, index], level) for level in self._bca_levels(index, tail))
        if self.trainings == 1:
            return Interval(mean + stretch * low, mean + stretch * high)
        if variance > 0 or spread.trainings > 0:
            t = t_quantile(tail, degrees_of_freedom(variance, self.prompts, self.trainings, spread))
            stretch *= t / t_quantile(tail, self.prompts - 1)
            arm = t * np.sqrt(spread.trainings / self.trainings)
        else:
            arm = 0.0
        below, above = np.hypot(stretch * max(-low, 0.0), arm), np.hypot(stretch * max(high, 0.0), arm)
        drawn = self.pigeonhole[:, index]
        below = max(float(below), -scale * _quantile(drawn, tail))
        above = max(float(above), scale * _quantile(drawn, 1 - tail))
        return Interval(mean - below, mean + above)

    def _bca_levels(self, index: int, tail: float) -> tuple[float, float]:
        """Efron 1987, equations 6.6 and 6.8; the acceleration of a mean is its skewness / (6 sqrt(P))."""
        means, row = self.by_prompt[:, index], self.rows[:, index]
        squares = np.sum(row**2)
        if squares == 0:
            return tail, 1 - tail
        at_most = np.searchsorted(means, 0.0, "right")
        share = (np.searchsorted(means, 0.0, "left") + at_most) / (2 * len(means))
        bias = special.ndtri(np.clip(share, 0.5 / len(means), 1 - 0.5 / len(means)))
        acceleration = np.sum(row**3) / (6 * squares**1.5)

        def level(z: float) -> float:
            shifted = bias + z
            shrink = 1 - acceleration * shifted
            # Beyond its pole the correction has no meaning: the farthest resample is the best there is.
            return float(special.ndtr(bias + shifted / shrink)) if shrink > 0 else float(shifted > 0)

        return level(float(special.ndtri(tail))), level(-float(special.ndtri(tail)))


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
