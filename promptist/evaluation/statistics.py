"""Levels and paired differences of a measurement table, with intervals that hold for all comparisons together.

Pure functions of a table: no files, no plotting. The images of one prompt are averaged first, because they are not
independent; every method saw the same prompts with the same noise, so differences are taken prompt by prompt, and
training by training where both methods were trained several times. Prompts and trainings are both draws: see
`crossed.py` for the intervals of one comparison, `docs/statistics.md` for the whole procedure and what it was measured
to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptist.errors import UserError
from promptist.evaluation.crossed import (
    Array,
    Bootstrap,
    Spread,
    analytic_interval,
    p_value,
    prompt_variance,
    training_variance,
    typical_training_variance,
)
from promptist.evaluation.diversity import diversity
from promptist.evaluation.results import (
    ALL,
    CONFIDENCE,
    Difference,
    Level,
    Results,
    default_pairs,
)
from promptist.evaluation.table import Scores, Table

LENGTHS = (0, 10, 20, 30, 40)
"""Lower ends of the buckets of prompt length in GPT-2 tokens (the paper's 0-10, 10-20, ..., 40+); a length that is
an end of two belongs to the upper one."""
_COLUMNS = 128  # comparisons bootstrapped at once: bounds the memory


@dataclass(frozen=True)
class Comparison:
    """What a difference is computed from: `values [P, R]` of (method - baseline) by prompt and training.

    `trained` names the methods of the pair that were trained R > 1 times.
    """

    set: str
    metric: str
    method: str
    baseline: str
    values: Array
    trained: tuple[str, ...] = ()
    unit: float | None = None


def analyse(
    table: Table, seed: int = 0, pairs: Sequence[tuple[str, str]] | None = None, corpus: bool = True
) -> Results:
    """All levels and differences of a measurement table, by set and over all sets.

    Sets and methods keep the order of the table. A pair is compared on the prompts that both methods have
    (human-engineered prompts exist for some prompts only) and, where both were trained several times, on the
    trainings of the same number; so a difference need not equal the difference of two levels. Over all sets every
    prompt counts the same, so a larger set weighs more. `pairs` are `default_pairs` unless given; `seed` is that of
    the bootstrap. Without `corpus` the levels lack the figures of all rewrites together, which take longest.

    Raises UserError for a table without measurements or without method "user", and where two methods have no
    trainings in common; ValueError as `Table.scores`.
    """
    if not table.measures or not table.texts:
        raise UserError("the evaluation holds no measurement: run jobs.evaluate to its end first")
    if "user" not in table.methods:
        raise UserError('the evaluation has no method "user": rewards are measured against the plain prompt, add it')
    pairs = list(default_pairs(table.methods) if pairs is None else pairs)
    scores = {(metric, m): table.scores(metric, m) for metric in table.metrics for m in table.methods}
    comparisons = list(_comparisons(table, scores, pairs))
    models = {measure.method for measure in table.measures if measure.model}
    family = {metric: sum(c.metric == metric for c in comparisons) for metric in table.metrics}
    return Results(
        sets=table.sets,
        methods=table.methods,
        levels=_levels(table, scores, corpus),
        differences=compare_all(comparisons, seed),
        lengths=_length_levels(table, scores),
        metrics=table.metrics,
        pairs=pairs,
        comparisons=family,
        trained=[m for m in table.methods if m in models],
    )


def compare_all(comparisons: Sequence[Comparison], seed: int = 0) -> list[Difference]:
    """The whole procedure from paired values to corrected intervals; a family is all comparisons of one metric."""
    found: dict[int, Difference] = {}
    families: dict[str, list[int]] = {}
    for i, comparison in enumerate(comparisons):
        families.setdefault(comparison.metric, []).append(i)
    spread: dict[int, Spread] = {}
    for members in families.values():
        spread |= zip(members, spreads([comparisons[i] for i in members]), strict=True)
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, comparison in enumerate(comparisons):
        shapes.setdefault(comparison.values.shape, []).append(i)
    for same in shapes.values():
        for start in range(0, len(same), _COLUMNS):
            chunk = same[start : start + _COLUMNS]
            bootstrap = Bootstrap([comparisons[i].values for i in chunk], seed)
            for column, i in enumerate(chunk):
                size = len(families[comparisons[i].metric])
                found[i] = _difference(comparisons[i], spread[i], bootstrap, column, size)
    return [found[i] for i in range(len(comparisons))]


def spreads(family: Sequence[Comparison]) -> list[Spread]:
    """What each comparison of one metric takes from the others, so that luck does not look like certainty.

    Prompts: at least the mean variance of the pair's single sets. A set whose few disasters happen not to be among its
    prompts has a mean too high and a variance too low at once; the other sets know better.

    Trainings: the largest of the own estimate, the mean of those of all pairs on the same set (where one is unsteady,
    the others mostly are), and the family's usual one (`typical_training_variance`; comparisons over all sets apart
    from those of single sets): an own estimate from R = 3 often comes out near 0. Degrees of freedom: R - 1, twice that
    where two trained methods and two pairs or more stand behind the usual one.
    """
    crossed = [i for i, c in enumerate(family) if min(c.values.shape) > 1]
    methods = {m for i in crossed for m in family[i].trained}
    pairs = {(family[i].method, family[i].baseline) for i in crossed}
    independent = max(1, min(2, len(methods), len(pairs)))
    usual = {
        whole: typical_training_variance([family[i].values for i in crossed if (family[i].set == ALL) == whole])
        for whole in (False, True)
    }
    variance = {i: training_variance(family[i].values) for i in crossed}
    own: dict[tuple[str, str], list[float]] = {}
    for c in family:
        if c.set != ALL and len(c.values) > 1:
            own.setdefault((c.method, c.baseline), []).append(prompt_variance(c.values))
    found = []
    for i, c in enumerate(family):
        alike = own.get((c.method, c.baseline), []) if c.set != ALL else []
        prompts = sum(alike) / len(alike) if alike else 0.0
        if i in crossed:
            there = [variance[j] for j in crossed if family[j].set == c.set]
            trainings = max(variance[i], sum(there) / len(there), usual[c.set == ALL], 0.0)
            found.append(Spread(prompts, trainings, (c.values.shape[1] - 1) * independent))
        else:
            found.append(Spread(prompts))
    return found


def _difference(c: Comparison, spread: Spread, bootstrap: Bootstrap, column: int, size: int) -> Difference:
    corrected = 1 - (1 - CONFIDENCE) / size  # Bonferroni
    p = p_value(c.values, spread)
    several = c.values.shape[1] > 1
    return Difference(
        set=c.set,
        metric=c.metric,
        method=c.method,
        baseline=c.baseline,
        prompts=len(c.values),
        mean=float(c.values.mean()),
        t=analytic_interval(c.values, spread),
        bootstrap=bootstrap.interval(column, spread),
        t_corrected=analytic_interval(c.values, spread, corrected),
        bootstrap_corrected=bootstrap.interval(column, spread, corrected),
        p=p,
        p_corrected=min(1.0, size * p) if np.isfinite(p) else p,
        comparisons=size,
        by_replica=[float(v) for v in c.values.mean(0)],
        training_sd=float(np.sqrt(spread.trainings)) if several else None,
        unit=c.unit,
    )


def _comparisons(
    table: Table, scores: Mapping[tuple[str, str], Scores], pairs: Iterable[tuple[str, str]]
) -> Iterable[Comparison]:
    groups = _groups(table)
    pairs = list(pairs)
    for name in groups:
        for method, baseline in pairs:
            columns = _columns(table, method, baseline)
            for metric in table.metrics:
                ours, theirs = scores[metric, method], scores[metric, baseline]
                having = set(theirs.prompts)
                shared = [p for p in ours.prompts if p in having and name in (table.set_of[p], ALL)]
                if not shared:
                    continue
                minuend, subtrahend = ours.of(shared)[:, columns[0]], theirs.of(shared)[:, columns[1]]
                trained = tuple(m for m in (method, baseline) if len(table.replicas(m)) > 1)
                unit = float(np.std(theirs.of(shared), ddof=1)) if baseline == "user" and len(shared) > 1 else None
                yield Comparison(name, metric, method, baseline, minuend - subtrahend, trained, unit or None)


def _groups(table: Table) -> list[str]:
    """Each set, then all together where there are several."""
    return [*table.sets, ALL] if len(table.sets) > 1 else table.sets


def _columns(table: Table, method: str, baseline: str) -> tuple[list[int], list[int]]:
    """Which trainings of the two are compared: those of the same number; a single one with each of the other's."""
    ours, theirs = table.replicas(method), table.replicas(baseline)
    if min(len(ours), len(theirs)) == 1:
        return list(range(len(ours))), list(range(len(theirs)))
    shared = [r for r in ours if r in theirs]
    if len(shared) < 2:
        raise UserError(
            f"{method} has the trainings {ours} and {baseline} {theirs}: give both at least two of the same number"
        )
    return [ours.index(r) for r in shared], [theirs.index(r) for r in shared]


def _levels(table: Table, scores: Mapping[tuple[str, str], Scores], corpus: bool) -> list[Level]:
    groups = _groups(table)
    images = _images(table)
    members = {name: {p for p, own in table.set_of.items() if name in (own, ALL)} for name in groups}
    return [
        level
        for name in groups
        for method in table.methods
        if (level := _level(table, scores, images, name, method, members[name], corpus)) is not None
    ]


def _length_levels(table: Table, scores: Mapping[tuple[str, str], Scores]) -> list[Level]:
    """Levels over all sets by the length of the user's prompt; only buckets that hold a prompt."""
    tokens = scores.get(("gpt2_tokens", "user"))
    if tokens is None:
        return []
    length = dict(zip(tokens.prompts, tokens.values[:, 0], strict=True))
    whole = ALL if len(table.sets) > 1 else table.sets[0]
    found: list[Level | None] = []
    images = _images(table)
    for low, high in zip(LENGTHS, [*LENGTHS[1:], None], strict=True):
        name = f"{low}–{high}" if high is not None else f"{low}+"
        chosen = {p for p, n in length.items() if n >= low and (high is None or n < high)}
        found += [_level(table, scores, images, whole, method, chosen, False, name) for method in table.methods]
    return [level for level in found if level is not None]


def _images(table: Table) -> dict[str, int]:
    """How many pictures per prompt each method was measured on."""
    seeds: dict[str, set[int]] = {}
    for measure in table.measures:
        if measure.seed is not None:
            seeds.setdefault(measure.method, set()).add(measure.seed)
    return {method: len(own) for method, own in seeds.items()}


def _level(
    table: Table, scores: Mapping[tuple[str, str], Scores], images: Mapping[str, int], name: str, method: str,
    prompts: set[str], corpus: bool, length: str = "",
) -> Level | None:  # fmt: skip
    own = [t for t in table.texts if t.method == method and t.prompt in prompts]
    if not own:
        return None
    means = {}
    for metric in table.metrics:
        measured = scores[metric, method]
        chosen = [i for i, prompt in enumerate(measured.prompts) if prompt in prompts]
        if chosen:
            means[metric] = float(np.mean(measured.values[chosen]))
    rewrites: dict[int, list[tuple[str, str]]] = {}
    for text in own:
        rewrites.setdefault(text.replica, []).append((text.prompt, text.rewrite))
    found = [diversity(pairs) for pairs in rewrites.values()] if corpus else []
    return Level(
        set=name,
        method=method,
        prompts=len({t.prompt for t in own}),
        images=images.get(method, 0),
        means=means,
        empty=sum(not t.rewrite for t in own) / len(own),
        distinct=float(np.mean([len({y for _, y in pairs}) / len(pairs) for pairs in rewrites.values()])),
        replicas=len(rewrites),
        corpus=_means([d.figures for d in found]),
        top_suffix=max(found, key=lambda d: d.top_suffix_share).top_suffix if found else "",
        length=length,
    )


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([own[name] for own in figures])) for name in (figures[0] if figures else ())}
