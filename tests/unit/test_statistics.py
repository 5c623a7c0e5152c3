"""Evaluation statistics against scipy's paired test, a BCa bootstrap written by hand, sums done on paper."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from promptist.errors import UserError
from promptist.evaluation.statistics import (
    ALL,
    Row,
    analyse,
    paired_interval_bootstrap,
    paired_interval_t,
    prompt_scores,
)
from promptist.reward.terms import TermsConfig, combine

SLOPE, OFFSET = 20.0, 5.6


def make_rows(seed: int = 0, prompts: int = 24, images: int = 3) -> list[Row]:
    """Two sets; human-engineered prompts in the first only; PPO's gain is real, SFT's is nothing."""
    random_ = np.random.default_rng(seed)
    gain = {"user": 0.0, "human": 0.3, "sft": 0.0, "ppo": 0.8}
    rows = []
    for i in range(prompts):
        name = "in" if i % 3 else "out"
        for method, mean in gain.items():
            if method == "human" and name == "out":
                continue
            rewrite = f"thing {i}, {method}" if method != "user" else f"thing {i}"
            for k in range(images):
                cosine, aesthetic = random_.normal(0.28, 0.02), 5 + mean + random_.normal(0, 0.3)
                rows.append(Row(f"thing {i}", name, method, k, rewrite, cosine, aesthetic, None))
    return rows


def values(rows: list[Row], method: str, metric: str, name: str) -> dict[str, float]:
    scores = prompt_scores(rows, SLOPE, OFFSET)
    return {s.prompt: s.values[metric] for s in scores if s.method == method and name in (s.set, ALL)}


@pytest.mark.parametrize("n", [2, 3, 17, 400])
def test_t_interval_is_scipys_paired_one(n: int) -> None:
    random_ = np.random.default_rng(n)
    a, b = random_.normal(1, 2, n), random_.normal(0, 1, n)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval_t(a - b)
    assert found.low == pytest.approx(expected.low, rel=1e-10)
    assert found.high == pytest.approx(expected.high, rel=1e-10)


def bca_by_hand(x: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Efron & Tibshirani 1993, section 14.3, for the mean."""
    random_ = np.random.default_rng(seed)
    n = len(x)
    means = np.sort(x[random_.integers(0, n, (resamples, n))].mean(1))
    z0 = stats.norm.ppf(np.mean(means < x.mean()))
    jackknife = (x.sum() - x) / (n - 1)
    centred = jackknife.mean() - jackknife
    a = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
    ends = []
    for q in (0.025, 0.975):
        z = stats.norm.ppf(q)
        ends.append(np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))))
    return ends[0], ends[1]


def test_bootstrap_is_bca_of_the_mean() -> None:
    x = np.random.default_rng(3).exponential(1.0, 40)  # skewed: BCa and percentile intervals differ clearly
    low, high = bca_by_hand(x, 50_000, seed=1)
    found = paired_interval_bootstrap(x, seed=5, resamples=50_000)
    tolerance = (
        0.1 * x.std() / math.sqrt(len(x))
    )  # of the standard error: what 50,000 resamples leave to chance
    assert found.low == pytest.approx(low, abs=tolerance)
    assert found.high == pytest.approx(high, abs=tolerance)
    plain = stats.bootstrap(
        (x,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    )
    assert abs(plain.confidence_interval.high - high) > 2 * tolerance  # the test would notice another method


def test_bootstrap_is_seeded() -> None:
    x = np.random.default_rng(3).exponential(1.0, 40)
    assert paired_interval_bootstrap(x, seed=5) == paired_interval_bootstrap(x, seed=5)
    assert paired_interval_bootstrap(x, seed=5) != paired_interval_bootstrap(x, seed=6)


def test_reward_on_paper() -> None:
    rows = [
        Row("x", "s", "user", 0, "x", 0.30, 5.0, None),
        Row("x", "s", "user", 1, "x", 0.27, 6.0, None),
        Row("x", "s", "ppo", 1, "y", 0.25, 6.5, None),  # hinge 20 * 0.25 - 5.6 = -0.6
        Row("x", "s", "ppo", 0, "y", 0.29, 5.2, None),  # hinge cut at 0
    ]
    user, ppo = prompt_scores(rows, SLOPE, OFFSET)
    assert user.values["reward"] == pytest.approx((0 + (20 * 0.27 - 5.6)) / 2)
    assert ppo.values == pytest.approx(
        {"reward": (0.2 + 0.5) / 2 + (0 - 0.6) / 2, "aesthetic": 5.85, "relevance": -0.3, "cosine": 0.27}
    )


def test_reward_is_the_training_reward() -> None:
    rows = make_rows()
    for score in prompt_scores(rows, SLOPE, OFFSET):
        own = [r for r in rows if (r.method, r.prompt) == (score.method, score.prompt)]
        plain = [r for r in rows if (r.method, r.prompt) == ("user", score.prompt)]
        expected = combine(
            [r.cosine for r in own],
            [r.aesthetic for r in own],
            [r.aesthetic for r in plain],
            TermsConfig(SLOPE, OFFSET),
        )
        assert score.values["reward"] == pytest.approx(expected.score, abs=1e-12)
        assert score.values["relevance"] == pytest.approx(expected.relevance, abs=1e-12)


@pytest.mark.parametrize("metric", ["reward", "aesthetic", "relevance", "cosine"])
@pytest.mark.parametrize("name", ["in", "out", ALL])
@pytest.mark.parametrize("pair", [("ppo", "sft"), ("sft", "user"), ("ppo", "user"), ("human", "user")])
def test_differences_are_paired_by_prompt(metric: str, name: str, pair: tuple[str, str]) -> None:
    rows = make_rows()
    shuffled = rows.copy()
    random.Random(1).shuffle(shuffled)
    found = analyse(shuffled, SLOPE, OFFSET).difference(*pair, metric, name)
    if pair[0] == "human" and name == "out":
        assert found is None
        return
    ours, theirs = (values(rows, method, metric, name) for method in pair)
    shared = sorted(ours.keys() & theirs.keys())
    test = stats.ttest_rel([ours[p] for p in shared], [theirs[p] for p in shared])
    expected = test.confidence_interval(0.95)
    assert found is not None
    assert found.prompts == len(shared)
    assert (found.t.low, found.t.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.mean == pytest.approx((expected.low + expected.high) / 2, rel=1e-9)


def test_what_is_sure() -> None:
    results = analyse(make_rows(seed=1), SLOPE, OFFSET)
    gain = results.difference("ppo", "sft", "reward", ALL)
    nothing = results.difference("sft", "user", "aesthetic", ALL)
    assert gain is not None and gain.sure and gain.mean > 0
    assert nothing is not None and not nothing.sure
    assert nothing.t.low < 0 < nothing.t.high


def test_levels_count_empty_and_distinct_rewrites() -> None:
    rewrites = ["", "", "a boat", "a boat", "a cat"]
    rows = []
    for i, y in enumerate(rewrites):
        rows.append(Row(f"x{i}", "s", "user", 0, f"x{i}", 0.3, 5.0, None))
        rows.append(Row(f"x{i}", "s", "ppo", 0, y, 0.3, 5.0, None))
    level = analyse(rows, SLOPE, OFFSET).level("ppo", "s")
    assert level is not None
    assert (level.empty, level.distinct, level.prompts, level.images) == (0.4, 0.6, 5, 1)


def test_one_prompt_gives_no_interval_and_valid_json() -> None:
    rows = [r for r in make_rows() if r.prompt == "thing 1"]
    results = analyse(rows, SLOPE, OFFSET)
    found = results.difference("ppo", "user", "reward", "in")
    assert found is not None and math.isnan(found.t.low) and not found.sure
    text = json.dumps(results.as_json(), allow_nan=False)
    assert json.loads(text)["differences"][0]["t"] == {"low": None, "high": None}


def test_equal_differences_have_an_interval_without_width() -> None:
    found = paired_interval_bootstrap(np.full(5, 0.25), seed=0)
    assert (found.low, found.high) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows, rows[0]], "there twice"),
        (lambda rows: rows[1:], "no image 0 of the plain prompt"),
        (
            lambda rows: [*rows[:-1], Row("thing 23", "in", "ppo", 2, "y", math.nan, 5.0, None)],
            "no finite score",
        ),
    ],
)
def test_broken_tables_are_refused(change, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        prompt_scores(change(make_rows()), SLOPE, OFFSET)


def test_nothing_to_analyse() -> None:
    with pytest.raises(UserError, match="no measurement"):
        analyse([], SLOPE, OFFSET)
    with pytest.raises(UserError, match="user"):
        analyse([r for r in make_rows() if r.method != "user"], SLOPE, OFFSET)
