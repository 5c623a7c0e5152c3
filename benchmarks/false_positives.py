"""How often the statistics of an evaluation find a difference where there is none, and how often a planted one.

    python benchmarks/false_positives.py [--repeats 1000] [--power-repeats 40] [--seed 0]

The procedure is the evaluation's own, `promptist.evaluation.statistics.compare_all` with its own number of bootstrap
resamples: 4 methods (user input, a fixed suffix, SFT, PPO) on 6 sets of 200 prompts, so 4 pairs x (6 sets + all) = 28
comparisons in the family. A repeat counts as a false positive when any of the 28 is called sure.

Simulated is the change of the reward over the user input, prompt by prompt and training by training, from what the
miniature's evaluations look like (three trainings: skewness -6 to 2, excess kurtosis up to 57, 8 to 41 % exact zeros,
standard deviations between trainings of 0.03 to 0.25 on a set and 0.05 to 0.10 over all):

    change[p, r] = kept * (gain + a_p + e_pr - hidden * loss + min(u_pr, 0) - min(v_p, 0)) + b_r

kept: 85 % of the rewrites change the prompt; hidden: 6 % of them hide the content, which loses an exponential amount
(mean 1.6); u, v: relevance above the hinge's threshold, normal with mean and deviation 0.3, so that most terms are 0;
gain: 0.06 * 1.6, so that the mean of all is 0; b_r: normal with deviation tau, correlated by 0.5 between the sets and
by 0.5 between SFT and the PPO that started from it. Planted differences are added to PPO.

The bootstrap is computed only in repeats in which an analytic interval, corrected, excludes 0: elsewhere nothing can
be sure. `textbook` is the two-way layout's usual Satterthwaite interval with the same Bonferroni correction.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptist.evaluation.crossed import analytic_interval, mean_squares, t_quantile
from promptist.evaluation.results import ALL, CONFIDENCE
from promptist.evaluation.statistics import Comparison, compare_all, spreads
from promptist.rng import generator

Array = NDArray[np.float64]

SETS, PROMPTS = 6, 200
KEPT, HIDDEN, LOSS, NOISE, HINGE = 0.85, 0.06, 1.6, 0.25, 0.3
ACROSS_SETS, ACROSS_METHODS = 0.5, 0.5


@dataclass(frozen=True)
class Case:
    """R trainings of SFT and PPO, `tau` between them on the first `unsteady` sets, `planted` on PPO."""

    trainings: int
    tau: float
    planted: float = 0.0
    unsteady: int = SETS

    def random(self, purpose: str, seed: int, repeat: int) -> np.random.Generator:
        parts = (self.trainings, str(self.tau), str(self.planted), self.unsteady)
        return generator(purpose, seed, *parts, repeat)


def trainings_luck(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """b of SFT and PPO, `[SETS, 1, R]` each."""

    def luck() -> Array:
        common = random.standard_normal((1, 1, case.trainings))
        own = random.standard_normal((SETS, 1, case.trainings))
        return np.sqrt(ACROSS_SETS) * common + np.sqrt(1 - ACROSS_SETS) * own

    shared = luck()
    sft, ppo = (np.sqrt(ACROSS_METHODS) * shared + np.sqrt(1 - ACROSS_METHODS) * luck() for _ in range(2))
    tau = case.tau * (np.arange(SETS) < case.unsteady)[:, None, None]
    return tau * sft, tau * ppo


def family(case: Case, random: np.random.Generator) -> list[Comparison]:
    """One simulated evaluation as the paired differences that `analyse` would make of it."""
    prompt = NOISE * random.standard_normal((SETS, PROMPTS, 1))
    plain = np.minimum(HINGE + HINGE * random.standard_normal((SETS, PROMPTS, 1)), 0)

    def change(trainings: int) -> Array:
        shape = (SETS, PROMPTS, trainings)
        hidden = (random.random(shape) < HIDDEN) * random.exponential(LOSS, shape)
        relevance = np.minimum(HINGE + HINGE * random.standard_normal(shape), 0) - plain
        noise = NOISE * random.standard_normal(shape)
        return (random.random(shape) < KEPT) * (HIDDEN * LOSS + prompt + noise - hidden + relevance)

    luck = trainings_luck(case, random)
    suffix = change(1)
    sft, ppo = change(case.trainings) + luck[0], change(case.trainings) + luck[1] + case.planted
    pairs = {("ppo", "sft"): ppo - sft, ("suffix", "user"): suffix, ("sft", "user"): sft, ("ppo", "user"): ppo}
    found = []
    for (method, baseline), values in pairs.items():
        trained = tuple(m for m in (method, baseline) if m in ("sft", "ppo")) if case.trainings > 1 else ()
        for i in range(SETS):
            found.append(Comparison(f"set {i}", "reward", method, baseline, values[i], trained))
        whole = values.reshape(-1, values.shape[2])
        found.append(Comparison(ALL, "reward", method, baseline, whole, trained))
    return found


def sure(comparisons: list[Comparison]) -> list[bool]:
    """What the procedure calls sure."""
    corrected = 1 - (1 - CONFIDENCE) / len(comparisons)
    analytic = zip(comparisons, spreads(comparisons), strict=True)
    if not any(analytic_interval(c.values, t, corrected).excludes_zero() for c, t in analytic):
        return [False] * len(comparisons)
    return [difference.sure for difference in compare_all(comparisons)]


def textbook(comparisons: list[Comparison]) -> list[bool]:
    """Satterthwaite's t for the two-way crossed layout with its own variance components, Bonferroni corrected."""
    alpha = (1 - CONFIDENCE) / len(comparisons)
    found = []
    for c in comparisons:
        prompts, trainings = c.values.shape
        mean = abs(c.values.mean())
        if trainings == 1:
            variance, df = np.var(c.values, ddof=1) / prompts, float(prompts - 1)
        else:
            m = mean_squares(c.values)
            more = m.trainings > m.residual
            total = m.prompts + (m.trainings - m.residual if more else 0.0)
            parts = m.prompts**2 / (prompts - 1)
            if more:
                parts += m.trainings**2 / (trainings - 1) + m.residual**2 / ((prompts - 1) * (trainings - 1))
            variance, df = total / (prompts * trainings), total**2 / parts
        found.append(bool(mean > t_quantile(alpha / 2, df) * np.sqrt(variance)))
    return found


def false_positives(case: Case, repeats: int, seed: int) -> tuple[float, float]:
    """Share of repeats with any false positive: of the procedure, and of the textbook's."""
    ours, theirs = 0, 0
    for i in range(repeats):
        comparisons = family(case, case.random("false positives", seed, i))
        ours += any(sure(comparisons))
        theirs += any(textbook(comparisons))
    return ours / repeats, theirs / repeats


def power(case: Case, repeats: int, seed: int) -> dict[str, float]:
    """Share of the planted differences called sure, by pair on single sets and over all sets together."""
    hits: dict[str, list[bool]] = {}
    for i in range(repeats):
        comparisons = family(case, case.random("power", seed, i))
        for c, found in zip(comparisons, sure(comparisons), strict=True):
            if c.method == "ppo":
                where = "all sets" if c.set == ALL else "one set"
                hits.setdefault(f"PPO over {c.baseline}, {where}", []).append(found)
    return {name: float(np.mean(found)) for name, found in hits.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=1000, help="of no difference (default: 1000)")
    parser.add_argument("--power-repeats", type=int, default=40, help="of each planted difference (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()

    print(f"No difference, {arguments.repeats} repeats: share with any false positive among 28 comparisons\n")
    print("| trainings | tau | procedure | textbook |\n| --- | --- | --- | --- |", flush=True)
    worst = 0.0
    cases = [
        Case(1, 0.0),
        Case(3, 0.0),
        Case(3, 0.1),
        Case(3, 0.2),
        Case(3, 0.2, unsteady=1),
        Case(5, 0.1),
        Case(1, 0.1),
    ]
    for case in cases:
        claimed = case.trainings > 1 or case.tau == 0  # one training says nothing on another
        repeats = arguments.repeats if claimed else arguments.repeats // 10
        ours, theirs = false_positives(case, repeats, arguments.seed)
        worst = max(worst, ours if claimed else 0.0)
        mark = "" if claimed else " (not claimed)"
        where = "" if case.unsteady == SETS else " on one set only"
        found = f"{100 * ours:.1f} %{mark} | {100 * theirs:.1f} %"
        print(f"| {case.trainings} | {case.tau:g}{where} | {found} |", flush=True)

    print(f"\nPlanted on PPO, {arguments.power_repeats} repeats: share called sure\n")
    heads = ["PPO over sft, one set", "PPO over sft, all sets", "PPO over user, one set", "PPO over user, all sets"]
    print("| trainings | tau | planted | " + " | ".join(heads) + " |\n|" + " --- |" * (3 + len(heads)), flush=True)
    for trainings, tau in [(1, 0.0), (3, 0.0), (3, 0.1), (3, 0.2), (5, 0.1), (5, 0.2), (8, 0.1), (8, 0.2)]:
        for planted in (0.1, 0.2, 0.3):
            found = power(Case(trainings, tau, planted), arguments.power_repeats, arguments.seed)
            cells = " | ".join(f"{100 * found[head]:.0f} %" for head in heads)
            print(f"| {trainings} | {tau:g} | {planted:g} | {cells} |", flush=True)
    print(f"\n{time.monotonic() - start:.0f} s. Worst family-wise false-positive rate claimed: {100 * worst:.1f} %")
    return 0 if worst <= 0.07 else 1


if __name__ == "__main__":
    sys.exit(main())
