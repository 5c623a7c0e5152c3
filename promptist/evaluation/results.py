"""What the statistics of an evaluation found: the levels, the paired differences, and how sure they are.

Plain records, made by `statistics.analyse`; words, tables, report and `promptist compare` read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

ALL = "all"
CONFIDENCE = 0.95
METRICS = ("reward", "aesthetic", "relevance", "cosine")
"""The training's own metrics, in the order in which tables show them."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    def excludes_zero(self) -> bool:
        """False also where an end is NaN (too few prompts for an interval)."""
        return bool(self.low > 0 or self.high < 0)  # NumPy's bool is none of JSON's

    def over(self, unit: float) -> Interval:
        return Interval(self.low / unit, self.high / unit)


NO_INTERVAL = Interval(float("nan"), float("nan"))


@dataclass(frozen=True)
class Difference:
    """Mean over prompts and trainings of (method - baseline) in one metric.

    `t` and `bootstrap` are 95 % intervals for this comparison alone; the two `corrected` ones hold together for all
    `comparisons` of the family with 95 % (`docs/statistics.md`). `p` belongs to `t`, `p_corrected` to `t_corrected`.
    `by_replica` is the mean difference of each training; one entry where only one training, or none, is compared: the
    intervals then say nothing on another training. `training_sd` is the standard deviation between trainings that the
    intervals reckon with, None where there is one entry. `unit` is the standard deviation of the metric over the
    user's own prompts where the baseline is `user`.
    """

    set: str
    metric: str
    method: str
    baseline: str
    prompts: int
    mean: float
    t: Interval
    bootstrap: Interval
    t_corrected: Interval
    bootstrap_corrected: Interval
    p: float = float("nan")
    p_corrected: float = float("nan")
    comparisons: int = 1
    by_replica: list[float] = field(default_factory=list)
    training_sd: float | None = None
    unit: float | None = None

    @property
    def replicas(self) -> int:
        return max(len(self.by_replica), 1)

    @property
    def sure(self) -> bool:
        """Both intervals, corrected for the number of comparisons, exclude 0."""
        return self.t_corrected.excludes_zero() and self.bootstrap_corrected.excludes_zero()

    @property
    def corrected(self) -> Interval:
        """The wider end of the two corrected intervals on each side: what `sure` looks at."""
        return Interval(
            min(self.t_corrected.low, self.bootstrap_corrected.low),
            max(self.t_corrected.high, self.bootstrap_corrected.high),
        )

    @property
    def in_units(self) -> tuple[float, Interval] | None:
        """(mean, corrected interval) in standard deviations of the user's prompts; None without a unit."""
        return (self.mean / self.unit, self.corrected.over(self.unit)) if self.unit else None


@dataclass(frozen=True)
class Level:
    """One method on one set: plain means over prompts and trainings, and what its rewrites look like.

    `empty` and `distinct` are shares of the prompts: of rewrites that left the prompt alone, and of different
    texts among the rewrites. `corpus` holds the figures of all rewrites of a set together (`diversity.py`), the mean
    over trainings; `top_suffix` is the addition of the training that repeats itself most. `length` is the bucket of
    the prompts' length in GPT-2 tokens, empty for all lengths.
    """

    set: str
    method: str
    prompts: int
    images: int
    means: dict[str, float]
    empty: float
    distinct: float
    replicas: int = 1
    corpus: dict[str, float] = field(default_factory=dict)
    top_suffix: str = ""
    length: str = ""


@dataclass(frozen=True)
class Results:
    """`levels` by set, `lengths` by length of the prompt over all sets. `pairs` are the (method, baseline) compared,
    `comparisons` the size of each metric's family, `trained` the methods that are models."""

    sets: list[str]
    methods: list[str]
    levels: list[Level]
    differences: list[Difference] = field(default_factory=list)
    lengths: list[Level] = field(default_factory=list)
    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    pairs: list[tuple[str, str]] = field(default_factory=list)
    comparisons: dict[str, int] = field(default_factory=dict)
    trained: list[str] = field(default_factory=list)

    @property
    def whole(self) -> str:
        """The name under which the widest group of prompts is filed."""
        return ALL if len(self.sets) > 1 else self.sets[0]

    @property
    def groups(self) -> list[str]:
        """All sets together first, then each."""
        return [ALL, *self.sets] if len(self.sets) > 1 else self.sets

    def level(self, method: str, set_name: str) -> Level | None:
        return next((v for v in self.levels if (v.method, v.set) == (method, set_name)), None)

    def difference(self, method: str, baseline: str, metric: str, set_name: str) -> Difference | None:
        wanted = (method, baseline, metric, set_name)
        return next((d for d in self.differences if (d.method, d.baseline, d.metric, d.set) == wanted), None)

    def as_json(self) -> dict[str, Any]:
        data: dict[str, Any] = asdict(self)
        for plain, difference in zip(data["differences"], self.differences, strict=True):
            plain["sure"] = difference.sure
            if (units := difference.in_units) is not None:
                plain["in_units"] = {"mean": units[0], "low": units[1].low, "high": units[1].high}
        without: dict[str, Any] = _without_nan(data)
        return without


def held_out(metrics: Sequence[str]) -> list[str]:
    """Of each held-out scorer the metric that comes nearest to the reward: its reward, else score, else aesthetic."""
    scorers = dict.fromkeys(m.rpartition(".")[0] for m in metrics if "." in m)
    nearest = (
        next((m for part in ("reward", "score", "aesthetic") if (m := f"{scorer}.{part}") in metrics), None)
        for scorer in scorers
    )
    return [m for m in nearest if m is not None]


def default_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(method, baseline) pairs worth a line: PPO (also `ppo-…`, other options) against SFT, then every method against
    "user". Checkpoints of a run (`ppo@8`) are a curve, no claims, and would only widen the correction."""
    named = [m for m in methods if "@" not in m]
    ppo = [(m, "sft") for m in named if m == "ppo" or m.startswith("ppo-")]
    return (ppo if "sft" in named else []) + [(m, "user") for m in named if m != "user"]


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: a missing interval end becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
