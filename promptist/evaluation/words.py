"""What the numbers of an evaluation say, in sentences to quote; also where the numbers say nothing."""

from __future__ import annotations

import math

from promptist.evaluation.methods import label
from promptist.evaluation.statistics import ALL, Difference, Interval, Results, default_pairs

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


def interval(found: Interval, digits: int = 2) -> str:
    if math.isnan(found.low) or math.isnan(found.high):
        return "no interval"
    return f"{signed(found.low, digits)} to {signed(found.high, digits)}"


def whole(results: Results) -> str:
    """The name under which the widest group of prompts is filed."""
    return ALL if len(results.sets) > 1 else results.sets[0]


def compare(difference: Difference) -> str:
    """One sentence on one difference, with its interval; honest where the evaluation cannot tell."""
    ours, theirs = label(difference.method), _object(difference.baseline)
    if math.isnan(difference.t.low):
        return (
            f"{ours} differs from {theirs} by {signed(difference.mean)} {difference.metric} "
            f"on one prompt, which is too few to say anything."
        )
    found = f"95 % interval {interval(difference.t)}, {difference.prompts} prompts"
    if difference.sure:
        more = "more" if difference.mean > 0 else "less"
        size = number(abs(difference.mean))
        return f"{ours} scores {size} {more} {difference.metric} than {theirs} ({found})."
    if difference.t.excludes_zero() or difference.bootstrap.excludes_zero():
        return (
            f"{ours} and {theirs} differ by {signed(difference.mean)} {difference.metric} "
            f"({found}; bootstrap {interval(difference.bootstrap)}): "
            f"only one of the two intervals excludes 0, so it is not sure."
        )
    return (
        f"{ours} and {theirs} differ by {signed(difference.mean)} {difference.metric} ({found}): "
        f"the interval includes 0, so this evaluation cannot tell them apart."
    )


def summary(results: Results) -> list[str]:
    """The sentences on top of the report, from the most to the least important."""
    group = whole(results)
    sentences = []
    for method, baseline in default_pairs(results.methods):
        difference = results.difference(method, baseline, "reward", group)
        if difference is None:
            continue
        sentences.append(compare(difference) + _by_set(results, difference))
    best = next((m for m in ("ppo", "sft") if m in results.methods), None)
    if best:
        sentences += _parts(results, best, group)
        sentences += _texts(results, best, group)
    sentences.append(
        "Reward, aesthetic and relevance are what the training optimises: a gain shows that it worked, "
        "not that people would prefer the pictures."
    )
    return sentences


def _object(method: str) -> str:
    """The label inside a sentence."""
    return {"user": "the plain user input", "human": "the human-engineered prompt"}.get(method, label(method))


def _by_set(results: Results, overall: Difference) -> str:
    """Which sets say something else than all of them together; nothing where there is only one set."""
    if len(results.sets) < 2:
        return ""
    key = (overall.method, overall.baseline, "reward")
    found = [d for d in (results.difference(*key, name) for name in results.sets) if d is not None]
    if len(found) == 1:
        return f" Only the set {found[0].set} has both."
    others = [d for d in found if not (d.sure and overall.sure and d.mean * overall.mean > 0)]
    if not others:
        return f" The same holds in each of the {len(found)} sets."
    parts = [f"{d.set} {signed(d.mean)} ({interval(d.t)}{'' if d.sure else ', not sure'})" for d in others]
    return f" {'Except on' if overall.sure else 'By set:'} " + "; ".join(parts) + "."


def _parts(results: Results, method: str, group: str) -> list[str]:
    aesthetic = results.difference(method, "user", "aesthetic", group)
    relevance = results.difference(method, "user", "relevance", group)
    cosine = results.difference(method, "user", "cosine", group)
    if aesthetic is None or relevance is None or cosine is None:
        return []
    kept = "The pictures match the user's prompt"
    if not cosine.sure:
        kept += " as well as those of the plain prompt, as far as this evaluation can tell"
    else:
        kept += (
            " less well than those of the plain prompt"
            if cosine.mean < 0
            else " better than the plain prompt's own"
        )
    return [
        f"Of {label(method)}'s change over the user input, aesthetics are {signed(aesthetic.mean)} "
        f"({interval(aesthetic.t)}) and relevance {signed(relevance.mean)} ({interval(relevance.t)}). "
        f"{kept}: CLIP cosine {signed(cosine.mean, 3)} ({interval(cosine.t, 3)})."
    ]


def _texts(results: Results, method: str, group: str) -> list[str]:
    level = results.level(method, group)
    if level is None:
        return []
    return [
        f"{label(method)} left {percent(level.empty)} of the prompts as they are; "
        f"{percent(level.distinct)} of its rewrites are different texts."
    ]
