"""What the numbers of an evaluation say, in sentences to quote; also where the numbers say nothing."""

from __future__ import annotations

import math

from promptist.evaluation.methods import label
from promptist.evaluation.results import Difference, Interval, Results, held_out

MINUS = "\u2212"


def signed(value: float, digits: int = 2) -> str:
    """`+0.12`, `−0.12`, or `0.00` without a sign where rounding leaves nothing."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def number(value: float, digits: int = 2) -> str:
    return signed(value, digits).lstrip("+")


def percent(share: float) -> str:
    """Whole per cents, but neither a small share as 0 % nor an almost full one as 100 %."""
    if 0 < share < 0.01:
        return "under 1 %"
    if 0.99 < share < 1:
        return "over 99 %"
    return f"{100 * share:.0f} %"


def count(n: int, noun: str) -> str:
    """`1 set`, `3 sets`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def interval(found: Interval, digits: int = 2) -> str:
    if math.isnan(found.low) or math.isnan(found.high):
        return "no interval"
    return f"{signed(found.low, digits)} to {signed(found.high, digits)}"


def digits_of(metric: str) -> int:
    """Decimals in which a metric is shown: a cosine moves in the third."""
    return 3 if metric.rpartition(".")[2] == "cosine" else 2


def metric_name(metric: str) -> str:
    """A metric inside a sentence: `rival.reward` is rival reward."""
    scorer, dot, name = metric.rpartition(".")
    words = {"cosine": "CLIP cosine", "score": "score", "kl": "KL"}.get(name, name.replace("_", " "))
    return f"{scorer} {words}" if dot else words


def compare(difference: Difference) -> str:
    """One sentence on one difference, with its interval; honest where the evaluation cannot tell."""
    d, digits, metric = difference, digits_of(difference.metric), metric_name(difference.metric)
    ours, theirs = label(d.method), _object(d.baseline)
    change = f"{ours} and {theirs} differ by {signed(d.mean, digits)} {metric}"
    if math.isnan(d.t.low):
        return (
            f"{ours} differs from {theirs} by {signed(d.mean, digits)} {metric} "
            f"on one prompt, which is too few to say anything."
        )
    basis = f"{d.prompts} prompts" + (f", {d.replicas} trainings" if d.replicas > 1 else "")
    alone = f"95 % interval {interval(d.t, digits)}, {basis}"
    if d.sure:
        more = "more" if d.mean > 0 else "less"
        size = number(abs(d.mean), digits)
        return f"{ours} scores {size} {more} {metric} than {theirs} (95 % interval {_corrected(d, digits)}; {basis})."
    if d.t.excludes_zero() and d.bootstrap.excludes_zero():
        one = d.t_corrected.excludes_zero() or d.bootstrap_corrected.excludes_zero()
        still = "only one of the two does" if one else "it does not"
        return (
            f"{change} ({alone}): taken alone the interval excludes 0, corrected for {d.comparisons} comparisons "
            f"{still} ({interval(d.corrected, digits)}), so it is not sure."
        )
    if d.t.excludes_zero() or d.bootstrap.excludes_zero():
        return (
            f"{change} ({alone}; bootstrap {interval(d.bootstrap, digits)}): "
            f"only one of the two intervals excludes 0, so it is not sure."
        )
    return f"{change} ({alone}): the interval includes 0, so this evaluation cannot tell them apart."


def _corrected(d: Difference, digits: int) -> str:
    many = f", corrected for {d.comparisons} comparisons" if d.comparisons > 1 else ""
    return interval(d.corrected, digits) + many


def summary(results: Results) -> list[str]:
    """The sentences on top of the report, from the most to the least important."""
    sentences = []
    for method, baseline in results.pairs:
        difference = results.difference(method, baseline, "reward", results.whole)
        if difference is not None:
            sentences.append(compare(difference) + by_set(results, difference))
    best = next((m for m in ("ppo", "sft") if m in results.methods), None)
    if best:
        sentences += _parts(results, best)
        sentences += _held_out(results, best)
        sentences += _texts(results, best)
    sentences += trainings(results)
    sentences.append(
        "Reward, aesthetic and relevance are what the training optimises: a gain shows that it worked, "
        "not that people would prefer the pictures."
    )
    return sentences


def trainings(results: Results) -> list[str]:
    """For how many trainings the intervals speak."""
    counts = {level.method: level.replicas for level in results.levels if level.method in results.trained}
    if not counts:
        return []
    once = [label(m) for m, count in counts.items() if count == 1 and "@" not in m]
    if len(once) == sum("@" not in m for m in counts):
        return [
            "Every method was trained once: the intervals tell how far a result depends on the choice of prompts, not "
            "how it would come out with another training seed."
        ]
    most = max(counts.values())
    found = f"The intervals reckon with the choice of prompts and of training seeds ({most} trainings)"
    if once:
        found += f"; {_listed(once)} {'was' if len(once) == 1 else 'were'} trained once, and is taken as it is"
    return [found + "."]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _object(method: str) -> str:
    """The label inside a sentence."""
    return {"user": "the plain user input", "human": "the human-engineered prompt"}.get(method, label(method))


def by_set(results: Results, overall: Difference) -> str:
    """Which sets say something else than all of them together; nothing where there is only one set."""
    if len(results.sets) < 2:
        return ""
    key = (overall.method, overall.baseline, overall.metric)
    found = [d for d in (results.difference(*key, name) for name in results.sets) if d is not None]
    if len(found) == 1:
        return f" Only the set {found[0].set} has both."
    others = [d for d in found if not (d.sure and overall.sure and d.mean * overall.mean > 0)]
    if not others:
        return f" The same holds in each of the {len(found)} sets."
    digits = digits_of(overall.metric)
    parts = [
        f"{d.set} {signed(d.mean, digits)} ({interval(d.corrected, digits)}{'' if d.sure else ', not sure'})"
        for d in others
    ]
    return f" {'Except on' if overall.sure else 'By set:'} " + "; ".join(parts) + "."


def _parts(results: Results, method: str) -> list[str]:
    aesthetic, relevance, cosine = (
        results.difference(method, "user", metric, results.whole) for metric in ("aesthetic", "relevance", "cosine")
    )
    if aesthetic is None or relevance is None or cosine is None:
        return []
    kept = "The pictures match the user's prompt"
    if not cosine.sure:
        kept += " as well as those of the plain prompt, as far as this evaluation can tell"
    else:
        kept += (
            " less well than those of the plain prompt" if cosine.mean < 0 else " better than the plain prompt's own"
        )
    units = ""
    if cosine.in_units is not None:
        mean, ends = cosine.in_units
        units = f", or {signed(mean)} ({interval(ends)}) of its standard deviation over the user's prompts"
    return [
        f"Of {label(method)}'s change over the user input, aesthetics are {signed(aesthetic.mean)} "
        f"({interval(aesthetic.corrected)}) and relevance {signed(relevance.mean)} ({interval(relevance.corrected)}). "
        f"{kept}: CLIP cosine {signed(cosine.mean, 3)} ({interval(cosine.corrected, 3)}){units}."
    ]


def _held_out(results: Results, method: str) -> list[str]:
    """Scorers that training never saw."""
    found = [results.difference(method, "user", metric, results.whole) for metric in held_out(results.metrics)]
    return [f"Held out from training: {compare(d)}" + by_set(results, d) for d in found if d is not None]


def _texts(results: Results, method: str) -> list[str]:
    level = results.level(method, results.whole)
    if level is None:
        return []
    found = (
        f"{label(method)} left {percent(level.empty)} of the prompts as they are; "
        f"{percent(level.distinct)} of its rewrites are different texts."
    )
    if (share := level.corpus.get("top_suffix_share")) is not None:
        what = f"“{level.top_suffix}”" if level.top_suffix else "nothing at all"
        found += f" Its most frequent addition, {what}, stands in {percent(share)} of them."
    return [found]
