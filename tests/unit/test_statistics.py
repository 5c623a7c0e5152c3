"""Evaluation statistics against scipy, least squares, loops over resamples, simulations and sums done on paper."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.false_positives import Case, family, textbook
from benchmarks.false_positives import sure as simulated_sure
from promptist.errors import UserError
from promptist.evaluation.crossed import (
    Bootstrap,
    Spread,
    analytic_interval,
    mean_squares,
    p_value,
    training_variance,
    typical_training_variance,
)
from promptist.evaluation.results import ALL, default_pairs, held_out
from promptist.evaluation.statistics import Comparison, analyse, compare_all, spreads
from promptist.evaluation.table import Measure, Table, Text
from promptist.rng import generator
from tests.helpers_statistics import make_table, prompt_means

NOTHING = Spread()


def crossed(random_: np.random.Generator, prompts: int, trainings: int, between: float = 0.3) -> np.ndarray:
    """D[p, r] = a_p + b_r + e_pr with deviations 0.2, `between` and 0.4."""
    effects = 0.2 * random_.normal(size=(prompts, 1)) + between * random_.normal(size=(1, trainings))
    return effects + 0.4 * random_.normal(size=(prompts, trainings))


@pytest.mark.parametrize("n", [2, 3, 17, 400])
def test_one_training_is_scipys_paired_t(n: int) -> None:
    random_ = np.random.default_rng(n)
    a, b = random_.normal(1, 2, n), random_.normal(0, 1, n)
    test = stats.ttest_rel(a, b)
    expected = test.confidence_interval(0.95)
    found = analytic_interval((a - b)[:, None], NOTHING)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-10)
    assert p_value((a - b)[:, None], NOTHING) == pytest.approx(test.pvalue, rel=1e-9)


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 28])
def test_one_training_is_scipys_bca_bootstrap(confidence: float) -> None:
    x = np.random.default_rng(3).exponential(1.0, 40) - 1.2  # skewed: BCa and percentile intervals differ clearly
    found = Bootstrap([x[:, None]], seed=5, resamples=100_000).interval(0, NOTHING, confidence)
    bca, percentile = (
        stats.bootstrap(
            (x,), np.mean, n_resamples=100_000, batch=1000, method=method, confidence_level=confidence,
            rng=np.random.default_rng(1),
        ).confidence_interval
        for method in ("BCa", "percentile")
    )  # fmt: skip
    error = x.std() / math.sqrt(len(x))  # 100,000 resamples leave a part of it to chance, most in the long tail
    assert found.low == pytest.approx(bca.low, abs=0.1 * error)
    assert found.high == pytest.approx(bca.high, abs=(0.1 if confidence == 0.95 else 0.4) * error)
    other = max(abs(percentile.low - bca.low), abs(percentile.high - bca.high))
    assert other > 0.2 * error  # the test would notice another method


def test_bootstrap_is_seeded() -> None:
    x = np.random.default_rng(3).exponential(1.0, (40, 1))
    same, again, other = (Bootstrap([x], seed).interval(0, NOTHING) for seed in (5, 5, 6))
    assert same == again != other


def test_comparisons_share_their_draws_but_not_their_numbers() -> None:
    random_ = np.random.default_rng(0)
    many = [crossed(random_, 30, 3) for _ in range(4)]
    together = Bootstrap(many, seed=1)
    for i, one in enumerate(many):
        alone, found = Bootstrap([one], seed=1).interval(0, NOTHING), together.interval(i, NOTHING)
        assert (alone.low, alone.high) == pytest.approx((found.low, found.high), rel=1e-12)


def sum_of_squares(values: np.ndarray, *factors: np.ndarray) -> float:
    """Residual sum of squares of an additive model, by least squares on dummy variables."""
    design = np.column_stack([np.ones(len(values)), *(np.eye(f.max() + 1)[f] for f in factors)])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return float(np.sum((values - fitted) ** 2))


def test_mean_squares_by_least_squares() -> None:
    found = mean_squares(d := crossed(np.random.default_rng(4), 13, 4))
    p, r = (index.ravel() for index in np.indices(d.shape))
    rest = sum_of_squares(d.ravel(), p, r)
    assert found.residual == pytest.approx(rest / (12 * 3))
    assert found.prompts == pytest.approx((sum_of_squares(d.ravel(), r) - rest) / 12)
    assert found.trainings == pytest.approx((sum_of_squares(d.ravel(), p) - rest) / 3)


def test_own_variance_components_give_the_textbooks_interval() -> None:
    """(MS_P + MS_R - MS_E) / (P R), Satterthwaite's degrees of freedom of its two parts (Searle et al. 1992)."""
    d = crossed(np.random.default_rng(1), 50, 4)
    m, (prompts, trainings) = mean_squares(d), d.shape
    parts = m.prompts / d.size, (m.trainings - m.residual) / d.size
    df = sum(parts) ** 2 / (parts[0] ** 2 / (prompts - 1) + parts[1] ** 2 / (trainings - 1))
    half = stats.t.ppf(0.975, df) * math.sqrt(sum(parts))
    spread = Spread(trainings=training_variance(d), df=trainings - 1)
    found = analytic_interval(d, spread)
    assert (found.low, found.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert p_value(d, spread) == pytest.approx(2 * stats.t.sf(abs(d.mean()) / math.sqrt(sum(parts)), df))


def test_training_variances_are_unbiased() -> None:
    random_ = np.random.default_rng(2)
    many = [crossed(random_, 40, 3) for _ in range(3000)]
    assert np.mean([training_variance(d) for d in many]) == pytest.approx(0.3**2, rel=0.06)
    assert typical_training_variance(many) == pytest.approx(0.3**2, rel=0.06)
    none = [crossed(random_, 40, 3, between=0.0) for _ in range(3000)]
    assert abs(np.mean([training_variance(d) for d in none])) < 2e-4
    assert typical_training_variance(none) < 5e-4
    assert typical_training_variance([]) == 0


def test_pigeonhole_by_loops() -> None:
    """Prompts P of P and trainings R - 1 of R, both with replacement, every resample by indexing."""
    d = crossed(np.random.default_rng(6), 25, 4)
    random_ = np.random.default_rng(7)
    means = []
    for _ in range(20_000):
        p, r = random_.integers(0, 25, 25), random_.integers(0, 4, 3)
        means.append(d[np.ix_(p, r)].mean())
    found = Bootstrap([d], seed=0)
    drawn = found.mean[0] + found.scale[0] * found.pigeonhole[:, 0]
    for level in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert np.quantile(drawn, level) == pytest.approx(np.quantile(means, level), abs=0.1 * np.std(means))
    assert found.interval(0, NOTHING).low <= np.quantile(drawn, 0.025) + 1e-6


@pytest.mark.parametrize("between", [0.0, 0.3])
def test_intervals_of_one_comparison_hold_what_they_say(between: float) -> None:
    """400 evaluations with 6 trainings: nominal 95 %."""
    random_ = np.random.default_rng(8)
    hits = np.zeros(2)
    for _ in range(400):
        d = crossed(random_, 40, 6, between)
        (spread,) = spreads([Comparison("s", "reward", "ppo", "user", d, ("ppo",))])
        found = analytic_interval(d, spread), Bootstrap([d], 0, resamples=1000).interval(0, spread)
        hits += [interval.low < 0 < interval.high for interval in found]
    assert np.all(hits / 400 > 0.92)
    assert hits[0] / 400 < 0.985


def test_a_family_lends_what_an_own_estimate_lacks() -> None:
    random_ = np.random.default_rng(9)
    lucky = crossed(random_, 30, 3)
    lucky -= lucky.mean(0)  # three trainings that happen to agree
    others = [
        Comparison(f"s{i}", "reward", m, "user", crossed(random_, 30, 3), (m,))
        for i in range(4)
        for m in ("sft", "ppo")
    ]
    alone = Comparison("x", "reward", "ppo", "user", lucky, ("ppo",))
    assert spreads([alone])[0] == Spread(pytest.approx(np.var(lucky.mean(1), ddof=1)), 0.0, 2)
    found = spreads([alone, *others])[0]
    assert found.trainings > 0.02 and found.df == 4
    whole = Comparison(ALL, "reward", "ppo", "user", lucky, ("ppo",))
    assert spreads([whole, *others])[0].trainings == 0  # over all sets apart from single ones
    unsteady = Comparison("x", "reward", "sft", "user", crossed(random_, 30, 3, between=2.0), ("sft",))
    mean = (training_variance(lucky) + training_variance(unsteady.values)) / 2  # of the pairs on that set
    assert spreads([alone, *others, unsteady])[0].trainings == pytest.approx(mean) and mean > 2 * found.trainings
    own = [np.var(c.values.mean(1), ddof=1) for c in (alone, *others) if c.method == "ppo"]
    assert found.prompts == pytest.approx(np.mean(own))


def test_false_positives_of_the_whole_procedure() -> None:
    """A small part of benchmarks/false_positives.py: the procedure holds its level where the textbook's does not."""
    found = np.zeros(2)
    for i in range(60):
        comparisons = family(Case(3, 0.1), generator("test", i))
        found += [any(simulated_sure(comparisons)), any(textbook(comparisons))]
    assert found[0] <= 8  # P(> 8 of 60 at 7 %) = 2 %
    assert found[1] > 10


@pytest.mark.parametrize("metric", ["reward", "aesthetic", "relevance", "cosine"])
@pytest.mark.parametrize("name", ["in", "out", ALL])
@pytest.mark.parametrize("pair", [("ppo", "sft"), ("sft", "user"), ("ppo", "user"), ("human", "user")])
def test_differences_are_paired_by_prompt(metric: str, name: str, pair: tuple[str, str]) -> None:
    table = make_table()
    random.Random(1).shuffle(table.measures)
    found = analyse(table).difference(*pair, metric, name)
    if pair[0] == "human" and name == "out":
        assert found is None
        return
    ours, theirs = (prompt_means(table, metric, method) for method in pair)
    of_set = {s: [p for p in ours if p in theirs and table.set_of[p] == s] for s in table.sets}
    shared = [p for s, prompts in of_set.items() if name in (s, ALL) for p in prompts]
    values = np.array([ours[p] - theirs[p] for p in shared])
    test = stats.ttest_rel([ours[p] for p in shared], [theirs[p] for p in shared])
    expected = test.confidence_interval(0.95)
    # On a single set the variance is at least the mean of those of all sets that have the pair.
    variances = [np.var([ours[p] - theirs[p] for p in prompts], ddof=1) for prompts in of_set.values() if prompts]
    stretch = 1.0 if name == ALL else math.sqrt(max(1.0, np.mean(variances) / np.var(values, ddof=1)))
    assert found is not None
    assert found.prompts == len(shared)
    assert found.mean == pytest.approx(values.mean(), rel=1e-9)
    half = stretch * (expected.high - expected.low) / 2
    assert (found.t.low, found.t.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-9)


def test_the_correction_is_bonferronis_over_pairs_and_groups() -> None:
    results = analyse(make_table())
    assert results.comparisons["reward"] == 4 * 3 - 1  # one set has no human-engineered prompts
    found = results.difference("ppo", "sft", "reward", ALL)
    assert found is not None and found.comparisons == 11
    at = stats.t.ppf(1 - 0.025 / 11, 23) / stats.t.ppf(0.975, 23)
    assert found.t_corrected.high - found.mean == pytest.approx(at * (found.t.high - found.mean))
    assert found.p_corrected == pytest.approx(min(1, 11 * found.p))
    assert (found.p_corrected < 0.05) == found.t_corrected.excludes_zero()
    assert found.bootstrap_corrected.low < found.bootstrap.low < found.bootstrap.high < found.bootstrap_corrected.high


def test_trainings_are_paired_by_number() -> None:
    table = make_table(trainings=3, spread=0.2)
    found = analyse(table).difference("ppo", "sft", "reward", ALL)
    expected = []
    for r in range(3):
        ours, theirs = prompt_means(table, "reward", "ppo", r), prompt_means(table, "reward", "sft", r)
        expected.append(np.mean([ours[p] - theirs[p] for p in ours]))
    assert found is not None and found.replicas == 3
    assert found.by_replica == pytest.approx(expected)
    assert found.mean == pytest.approx(np.mean(expected))
    assert found.training_sd is not None and found.training_sd > 0

    def without(method: str, replica: int) -> Table:
        def keep(row: Measure | Text) -> bool:
            return (row.method, row.replica) != (method, replica)

        return Table([m for m in table.measures if keep(m)], [t for t in table.texts if keep(t)])

    fewer = analyse(without("sft", 0)).difference("ppo", "sft", "reward", ALL)
    assert fewer is not None and fewer.by_replica == pytest.approx(expected[1:])
    plain = analyse(table).difference("ppo", "user", "reward", ALL)  # one row of the user for all trainings
    user = prompt_means(table, "reward", "user")
    for r, mean in enumerate(plain.by_replica if plain else []):
        ours = prompt_means(table, "reward", "ppo", r)
        assert mean == pytest.approx(np.mean([ours[p] - user[p] for p in ours]))
    other = Table(
        [replace(m, replica=m.replica + 9) if m.method == "sft" else m for m in table.measures],
        [replace(t, replica=t.replica + 9) if t.method == "sft" else t for t in table.texts],
    )
    with pytest.raises(UserError, match="at least two of the same number"):
        analyse(other)


def test_what_is_sure() -> None:
    for trainings in (1, 5):
        results = analyse(make_table(seed=1, prompts=48, trainings=trainings, spread=0.05))
        gain = results.difference("ppo", "sft", "reward", ALL)
        nothing = results.difference("sft", "user", "aesthetic", ALL)
        assert gain is not None and gain.sure and gain.mean > 0 and gain.corrected.low > 0
        assert nothing is not None and not nothing.sure
        assert nothing.t.low < 0 < nothing.t.high


def test_relevance_in_standard_deviations_of_the_users_prompts() -> None:
    table = make_table()
    results = analyse(table)
    found = results.difference("ppo", "user", "cosine", ALL)
    user = np.array(list(prompt_means(table, "cosine", "user").values()))
    assert found is not None and found.in_units is not None
    assert found.unit == pytest.approx(user.std(ddof=1))
    assert found.in_units[0] == pytest.approx(found.mean / user.std(ddof=1))
    assert found.in_units[1].low == pytest.approx(found.corrected.low / user.std(ddof=1))
    against = results.difference("ppo", "sft", "cosine", ALL)
    assert against is not None and against.in_units is None


def test_pairs_leave_out_checkpoints() -> None:
    assert default_pairs(["user", "sft", "ppo", "ppo-gate", "ppo@8", "suffix"]) == [
        ("ppo", "sft"), ("ppo-gate", "sft"), ("sft", "user"), ("ppo", "user"), ("ppo-gate", "user"), ("suffix", "user"),
    ]  # fmt: skip
    assert default_pairs(["user", "ppo"]) == [("ppo", "user")]
    assert held_out(["reward", "rival.cosine", "rival.reward", "pick.score", "v1.aesthetic"]) == [
        "rival.reward", "pick.score", "v1.aesthetic",
    ]  # fmt: skip


def test_levels_on_paper() -> None:
    rewrites = [["", "", "a boat, red", "a boat, red", "a cat, red"], ["", "x1, old", "x2, old", "x3, old", "x4, new"]]
    table = Table([], [])
    for i in range(5):
        table.texts.append(Text(f"x{i}", "s", "user", 0, ""))
        table.measures.append(Measure(f"x{i}", "s", "user", 0, 0, "reward", 0.0))
        table.measures.append(Measure(f"x{i}", "s", "user", 0, None, "gpt2_tokens", (2, 9, 10, 41, 40)[i]))
        for r in range(2):
            table.texts.append(Text(f"x{i}", "s", "ppo", r, rewrites[r][i]))
            table.measures.append(Measure(f"x{i}", "s", "ppo", r, 0, "reward", float(i + 10 * r)))
    results = analyse(table)
    level = results.level("ppo", "s")
    assert level is not None
    assert (level.prompts, level.images, level.replicas) == (5, 1, 2)
    assert level.means["reward"] == 7.0  # mean of 0..4 and 10..14
    assert (level.empty, level.distinct) == (pytest.approx((0.4 + 0.2) / 2), pytest.approx((0.6 + 1.0) / 2))
    assert level.corpus["top_suffix_share"] == pytest.approx((0.4 + 0.6) / 2)
    assert level.top_suffix == "old"
    lengths = {(v.length, v.method): v for v in results.lengths}
    assert [v.length for v in results.lengths if v.method == "user"] == ["0–10", "10–20", "40+"]
    assert lengths["0–10", "ppo"].means["reward"] == pytest.approx((0 + 1 + 10 + 11) / 4)
    assert lengths["10–20", "ppo"].means["reward"] == pytest.approx((2 + 12) / 2)
    assert lengths["40+", "ppo"].prompts == 2


def test_one_prompt_gives_no_interval_and_valid_json() -> None:
    whole = make_table()
    table = Table(
        [m for m in whole.measures if m.prompt == "thing 1"], [t for t in whole.texts if t.prompt == "thing 1"]
    )
    results = analyse(table)
    found = results.difference("ppo", "user", "reward", "in")
    assert found is not None and math.isnan(found.t.low) and not found.sure
    text = json.dumps(results.as_json(), allow_nan=False)
    assert json.loads(text)["differences"][0]["t"] == {"low": None, "high": None}


def test_equal_differences_have_an_interval_without_width() -> None:
    for shape in ((5, 1), (5, 3)):
        (found,) = compare_all([Comparison("s", "reward", "ppo", "user", np.full(shape, 0.25))])
        for interval in (found.t, found.bootstrap, found.t_corrected, found.bootstrap_corrected):
            assert (interval.low, interval.high) == pytest.approx((0.25, 0.25), abs=1e-12)
        assert found.sure and found.p == 0
    (nothing,) = compare_all([Comparison("s", "reward", "ppo", "user", np.zeros((5, 3)))])
    assert not nothing.sure and nothing.p == 1


def test_results_do_not_depend_on_the_order_of_the_rows() -> None:
    table = make_table(trainings=2, spread=0.1)
    shuffled = Table(random.Random(2).sample(table.measures, len(table.measures)), table.texts)
    first, second = (
        {(d.set, d.metric, d.method, d.baseline): d for d in analyse(t).differences} for t in (table, shuffled)
    )
    assert first == second


def test_nothing_to_analyse() -> None:
    with pytest.raises(UserError, match="no measurement"):
        analyse(Table([], []))
    table = make_table()
    without = Table([m for m in table.measures if m.method != "user"], [t for t in table.texts if t.method != "user"])
    with pytest.raises(UserError, match="user"):
        analyse(without)
