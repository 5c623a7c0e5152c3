"""Paired comparison of methods over the same prompts, with intervals.

Pure functions of a measurement table: no files, no plotting. The unit of resampling is the prompt: the images
of one prompt are averaged first, because they are not independent, and every method saw the same prompts with
the same noise, so differences are taken prompt by prompt.

Two intervals stand side by side. The paired t interval is exact for normal differences; the BCa bootstrap
(Efron 1987, "Better bootstrap confidence intervals") makes no such assumption. A difference is called *sure*
only if both exclude zero.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from promptist.errors import UserError

Array = NDArray[np.float64]

METRICS = ("reward", "aesthetic", "relevance", "cosine")
ALL = "all"
RESAMPLES = 10_000


@dataclass(frozen=True)
class Row:
    """One image: prompt `x` of `set`, painted by `method` as `rewrite` with noise `k`, and what was measured
    on it.

    `rewrite` may be empty: the method left the prompt alone, and x itself was painted. `cosine` is the CLIP
    cosine of the image with x; `aesthetic` the score of the aesthetic head; `picture` a path relative to the
    evaluation folder.
    """

    prompt: str
    set: str
    method: str
    k: int
    rewrite: str
    cosine: float
    aesthetic: float
    picture: str | None


@dataclass(frozen=True)
class PromptScore:
    """Means over the images of one prompt; `values` has every name in METRICS."""

    prompt: str
    set: str
    method: str
    rewrite: str
    values: dict[str, float]


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """False also where an end is NaN (too few prompts for an interval)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """Mean over prompts of (method - baseline) in one metric, with 95 % intervals for that mean."""

    set: str
    metric: str
    method: str
    baseline: str
    prompts: int
    mean: float
    t: Interval
    bootstrap: Interval

    @property
    def sure(self) -> bool:
        return self.t.excludes_zero() and self.bootstrap.excludes_zero()


@dataclass(frozen=True)
class Level:
    """One method on one set: plain means over prompts, and what its rewrites look like.

    `empty` and `distinct` are shares of the prompts: of rewrites that left the prompt alone, and of different
    texts among the rewrites.
    """

    set: str
    method: str
    prompts: int
    images: int
    means: dict[str, float]
    empty: float
    distinct: float


@dataclass(frozen=True)
class Results:
    sets: list[str]
    methods: list[str]
    levels: list[Level]
    differences: list[Difference] = field(default_factory=list)

    def level(self, method: str, set_name: str) -> Level | None:
        return next((v for v in self.levels if (v.method, v.set) == (method, set_name)), None)

    def difference(self, method: str, baseline: str, metric: str, set_name: str) -> Difference | None:
        wanted = (method, baseline, metric, set_name)
        return next((d for d in self.differences if (d.method, d.baseline, d.metric, d.set) == wanted), None)

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = _without_nan(asdict(self))
        for plain, difference in zip(data["differences"], self.differences, strict=True):
            plain["sure"] = difference.sure
        return data


def prompt_scores(rows: Iterable[Row], slope: float, offset: float) -> list[PromptScore]:
    """Score of every (method, prompt): the training reward without its KL part, averaged over the images.

        relevance = mean_k min(slope * cos_k - offset, 0)
        reward    = mean_k (aes_k(y) - aes_k(x)) + relevance            (Promptist, section 2.2)

    aes_k(x) is read from the row of method "user" with the same prompt and k. `aesthetic` is the absolute
    mean score, not the difference: its paired difference to "user" is the aesthetic part of the reward.

    Raises ValueError where an image has no plain partner, is there twice, or holds a number that is not
    finite.
    """
    rows = list(rows)
    plain = {(r.prompt, r.k): r.aesthetic for r in rows if r.method == "user"}
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        images = groups.setdefault((row.method, row.prompt), {})
        if row.k in images:
            raise ValueError(f"image {row.k} of method {row.method} and prompt {row.prompt!r} is there twice")
        if (row.prompt, row.k) not in plain:
            raise ValueError(
                f"no image {row.k} of the plain prompt {row.prompt!r} to compare {row.method} with"
            )
        if not (np.isfinite(row.cosine) and np.isfinite(row.aesthetic)):
            raise ValueError(
                f"image {row.k} of method {row.method} and prompt {row.prompt!r} has no finite score"
            )
        images[row.k] = row

    scores = []
    for (method, prompt), by_k in groups.items():
        images_of = [by_k[k] for k in sorted(by_k)]
        cosine = np.array([r.cosine for r in images_of])
        aesthetic = np.array([r.aesthetic for r in images_of])
        gain = aesthetic - np.array([plain[prompt, r.k] for r in images_of])
        relevance = np.minimum(slope * cosine - offset, 0.0)
        values = {
            "reward": float(np.mean(gain) + np.mean(relevance)),
            "aesthetic": float(np.mean(aesthetic)),
            "relevance": float(np.mean(relevance)),
            "cosine": float(np.mean(cosine)),
        }
        scores.append(PromptScore(prompt, images_of[0].set, method, images_of[0].rewrite, values))
    return scores


def paired_interval_t(differences: Array, confidence: float = 0.95) -> Interval:
    """Interval of the mean of paired differences [n] by Student's t with n - 1 degrees of freedom; NaN if n <
    2.
    """
    n = len(differences)
    if n < 2:
        return Interval(float("nan"), float("nan"))
    mean = float(np.mean(differences))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * np.std(differences, ddof=1) / np.sqrt(n))
    return Interval(mean - half, mean + half)


def paired_interval_bootstrap(
    differences: Array, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """BCa bootstrap interval of the mean of paired differences [n]; NaN if n < 2.

    Differences that are all equal have no spread to resample: the interval is that one value.
    """
    n = len(differences)
    if n < 2:
        return Interval(float("nan"), float("nan"))
    if np.ptp(differences) <= 1e-12 * np.max(np.abs(differences)):  # the rest is rounding
        mean = float(np.mean(differences))
        return Interval(mean, mean)
    with warnings.catch_warnings():
        # scipy warns where BCa is undefined and answers NaN, which `Difference.sure` reads as "not sure".
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        # Batches bound the memory: all resamples of 10,000 prompts at once would be 800 MB.
        found = stats.bootstrap(
            (differences,), np.mean, confidence_level=confidence, n_resamples=resamples, batch=200,
            method="BCa", rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    return Interval(float(found.low), float(found.high))


def default_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(method, baseline) pairs worth a line: PPO against SFT if both are there, then every method against
    "user".
    """
    pairs = [("ppo", "sft")] if {"ppo", "sft"} <= set(methods) else []
    return pairs + [(method, "user") for method in methods if method != "user"]


def analyse(rows: Iterable[Row], slope: float, offset: float, seed: int = 0) -> Results:
    """All levels and differences of a measurement table, by set and over all sets.

    Sets and methods keep the order in which they first appear. A pair is compared on the prompts that both
    methods have (human-engineered prompts exist for some prompts only), so a difference need not equal the
    difference of two levels. Over all sets every prompt counts the same, so a larger set weighs more.

    Raises UserError without rows, without method "user", and as `prompt_scores`.
    """
    rows = list(rows)
    if not rows:
        raise UserError("the evaluation holds no measurement: run jobs.evaluate to its end first")
    sets = list(dict.fromkeys(r.set for r in rows))
    methods = list(dict.fromkeys(r.method for r in rows))
    if "user" not in methods:
        raise UserError(
            'the evaluation has no method "user": rewards are measured against the plain prompt, add it'
        )
    images = {m: len({r.k for r in rows if r.method == m}) for m in methods}
    scores = prompt_scores(rows, slope, offset)
    groups = [*sets, ALL] if len(sets) > 1 else sets

    levels, differences = [], []
    by_method: dict[str, dict[str, PromptScore]] = {
        m: {s.prompt: s for s in scores if s.method == m} for m in methods
    }
    for name in groups:
        for method in methods:
            chosen = [s for s in by_method[method].values() if name in (s.set, ALL)]
            if chosen:
                levels.append(_level(name, method, chosen, images[method]))
        for method, baseline in default_pairs(methods):
            differences += _differences(name, method, baseline, by_method, seed)
    return Results(sets, methods, levels, differences)


def _level(name: str, method: str, chosen: list[PromptScore], images: int) -> Level:
    return Level(
        set=name,
        method=method,
        prompts=len(chosen),
        images=images,
        means={metric: float(np.mean([s.values[metric] for s in chosen])) for metric in METRICS},
        empty=sum(not s.rewrite for s in chosen) / len(chosen),
        distinct=len({s.rewrite for s in chosen}) / len(chosen),
    )


def _differences(
    name: str, method: str, baseline: str, by_method: Mapping[str, Mapping[str, PromptScore]], seed: int
) -> list[Difference]:
    ours, theirs = by_method[method], by_method[baseline]
    shared = [p for p in ours if p in theirs and name in (ours[p].set, ALL)]
    found = []
    for metric in METRICS if shared else ():
        values = np.array([ours[p].values[metric] - theirs[p].values[metric] for p in shared])
        found.append(
            Difference(
                name, metric, method, baseline, len(shared), float(np.mean(values)),
                paired_interval_t(values), paired_interval_bootstrap(values, seed),
            )
        )  # fmt: skip
    return found


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: a missing interval end becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
