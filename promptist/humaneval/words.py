"""What the raters' answers say, in sentences and Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping

from promptist.evaluation.words import count, number, percent, signed
from promptist.humaneval.scores import ALL, Agreement, Bounds, Habit, Preference, Scores

RELIABLE, TENTATIVE = 0.8, 0.667
"""Krippendorff's customary limits (Content Analysis, chapter on reliability): rely on alpha >= 0.8, conclude
tentatively from 0.667 on."""
SURE = 0.05


def summary(scores: Scores, labels: Mapping[str, str]) -> list[str]:
    """The result in sentences, the most important first."""
    raters = len(scores.raters)
    sentences = [
        f"{count(raters, 'rater')} of {scores.planned_raters} planned gave {scores.answered} of {scores.asked} answers."
    ]
    for found in scores.overall():
        sentences.append(_preference(found, labels))
        sentences.append(_vote(found, labels, len(scores.overall())))
    sentences += [_agreement(found, labels) for found in scores.agreements]
    sentences += _habits(scores.habits[0])
    if raters == 1:
        sentences.append("One rater: the intervals say how the prompts vary, not what other people would choose.")
    return sentences


def _preference(found: Preference, labels: Mapping[str, str]) -> str:
    first, second = labels.get(found.first, found.first), labels.get(found.second, found.second)
    a, equal, b = (percent(share) for share in found.shares)
    group = count(found.prompts, "prompt") + ("" if found.title == ALL else f" of {found.title}")
    text = (
        f"{first} against {second}: {first} was preferred in {a} of {found.ratings} ratings, {second} in {b}, "
        f"{equal} were equally good ({group}). The difference is {points(found.net)} "
        f"(95 % interval {_points(found.net_interval)}): "
    )
    if found.net_interval[0] > 0:
        text += f"people prefer {first}."
    elif found.net_interval[1] < 0:
        text += f"people prefer {second}."
    else:
        text += "the interval includes 0, so this study cannot tell whom people prefer."
    if found.identical:
        text += (
            f" {count(found.identical, 'prompt')} had the same picture twice: not shown, counted as equally good for "
            "every rater."
        )
    return text


def _vote(found: Preference, labels: Mapping[str, str], family: int) -> str:
    first = labels.get(found.first, found.first)
    prompts = f"{found.lost} of {found.prompts} prompts"
    text = f"By majority vote {first} wins {found.won}, ties {found.tied} and loses {prompts}"
    if found.p is None or found.p_holm is None or found.won_share is None or found.won_interval is None:
        return text + "; without a win or a loss there is nothing to test."
    corrected = f", corrected for {family} comparisons" if family > 1 else ""
    return (
        f"{text}: {percent(found.won_share)} of those not tied ({_percents(found.won_interval)}), sign test "
        f"{p_value(found.p_holm)}{corrected}, {'sure' if found.p_holm < SURE else 'not sure'} at the 5 % level."
    )


def _agreement(found: Agreement, labels: Mapping[str, str]) -> str:
    names = f"{labels.get(found.first, found.first)} against {labels.get(found.second, found.second)}"
    if found.ordinal is None or found.ordinal_interval is None:
        why = "all answers are the same" if found.pairs else "no pair has two raters"
        return f"Agreement on {names} is not defined: {why}."
    low, high = found.ordinal_interval
    text = f"Agreement on {names}: Krippendorff's alpha {number(found.ordinal)} ({number(low)} to {number(high)}), "
    if found.ordinal >= RELIABLE:
        return text + "reliable by the customary limit of 0.8."
    if found.ordinal >= TENTATIVE:
        return text + "enough for tentative conclusions by the customary limits (0.667, 0.8)."
    return text + "below the customary limit of 0.667: raters see it differently, so read shares as a mix of tastes."


def _habits(everybody: Habit) -> list[str]:
    sentences = []
    if everybody.same_interval is not None:
        sentences.append(
            f"Shown again with sides swapped, {everybody.same} of {everybody.repeats} pairs got the same answer "
            f"({percent(everybody.same / everybody.repeats)}, {_percents(everybody.same_interval)})."
        )
    if everybody.left_interval is not None and everybody.left_p is not None:
        bias = "a position bias" if everybody.left_p < SURE else "no sure position bias"
        sentences.append(
            f"The left picture (A) was preferred in {everybody.left} of {everybody.decided} decided ratings "
            f"({percent(everybody.left / everybody.decided)}, {_percents(everybody.left_interval)}; "
            f"{p_value(everybody.left_p)}): {bias}. Sides are balanced, so it favours no method."
        )
    return sentences


def markdown(scores: Scores, labels: Mapping[str, str]) -> str:
    """`summary.md`: sentences, figure, tables."""
    lines = ["# Human evaluation", "", f"Study {scores.study}.", ""]
    lines += [f"- {sentence}" for sentence in summary(scores, labels)]
    alt = "; ".join(
        f"{labels.get(f.first, f.first)} {percent(f.shares[0])}, equally good {percent(f.shares[1])}, "
        f"{labels.get(f.second, f.second)} {percent(f.shares[2])}"
        for f in scores.overall()
    )
    lines += ["", f"![Preference shares: {alt}](preferences.png)", ""]
    lines += _table(
        ["comparison", "set", "prompts", "first better", "equally good", "second better", "difference",
         "won / tied / lost", "share won", "p", "p (Holm)"],
        [
            [
                f"{labels.get(f.first, f.first)} : {labels.get(f.second, f.second)}", f.title, str(f.prompts),
                *(f"{percent(share)} ({_percents(bounds)})" for share, bounds in zip(f.shares, f.intervals)),
                f"{points(f.net)} ({_points(f.net_interval)})", f"{f.won} / {f.tied} / {f.lost}",
                "" if f.won_share is None or f.won_interval is None
                else f"{percent(f.won_share)} ({_percents(f.won_interval)})",
                "" if f.p is None else p_value(f.p).removeprefix("p = ").removeprefix("p "),
                "" if f.p_holm is None else p_value(f.p_holm).removeprefix("p = ").removeprefix("p "),
            ]
            for f in scores.preferences
        ],
    )  # fmt: skip
    lines += [
        "",
        "95 % intervals in brackets: of shares and differences by a bootstrap over prompts and raters, of the share "
        "won by Clopper and Pearson. The test is of all prompts of a comparison together; further rows, "
        "of its single sets, are descriptive.",
        "",
    ]
    lines += _table(
        ["comparison", "pairs", "alpha, ordinal", "alpha, nominal"],
        [
            [
                f"{labels.get(a.first, a.first)} : {labels.get(a.second, a.second)}", str(a.pairs),
                "not defined" if a.ordinal is None or a.ordinal_interval is None
                else f"{number(a.ordinal)} ({number(a.ordinal_interval[0])} to {number(a.ordinal_interval[1])})",
                "not defined" if a.nominal is None else number(a.nominal),
            ]
            for a in scores.agreements
        ],
    )  # fmt: skip
    lines.append("")
    lines += _table(
        ["rater", "same answer again", "left preferred", "p", "median seconds"],
        [
            [
                "all" if h.rater is None else str(h.rater), f"{h.same} of {h.repeats}", f"{h.left} of {h.decided}",
                "" if h.left_p is None else p_value(h.left_p).removeprefix("p = ").removeprefix("p "),
                f"{h.seconds:.1f}",
            ]
            for h in scores.habits
        ],
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def points(difference: float) -> str:
    """Percentage points with their sign."""
    return f"{signed(100 * difference, 0)} points"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _percents(bounds: Bounds) -> str:
    return f"{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f} %"


def _points(bounds: Bounds) -> str:
    return f"{signed(100 * bounds[0], 0)} to {signed(100 * bounds[1], 0)}"
