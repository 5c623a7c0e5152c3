"""Alarms: what in the metrics of a run says that the policy collapses, or pleases the scorer instead of the user.

Pure functions of the records of `metrics.jsonl`. An alarm is a sentence with the numbers behind it and the threshold
they crossed. Iterations are noisy, so what is judged is the mean of the newest `window` iterations, against a bound or
against the mean of the first `window`; a rise or fall counts only beyond `sigmas` standard errors of the two means.
The thresholds are ours: set so that a run which does well stays quiet, not derived from theory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptist.evaluation import judges
from promptist.evaluation.history import History
from promptist.evaluation.judges import Thresholds
from promptist.evaluation.words import percent


@dataclass(frozen=True)
class Alarm:
    """`since`: the step from which on it has held without a break."""

    name: str
    sentence: str
    since: int


@dataclass(frozen=True)
class Check:
    """One thing that is watched: `judge(history, thresholds)` gives the sentence, None where all is well or the run
    too young to tell; `watched` says in words what would raise it."""

    name: str
    judge: Callable[[History, Thresholds], str | None]
    watched: str


def find(kind: str, records: Sequence[Mapping[str, Any]], thresholds: Thresholds | None = None) -> list[Alarm]:
    """The alarms that the newest record of a run of `kind` ("ppo" or "sft") raises, in the order of `CHECKS`."""
    limits, history = thresholds or Thresholds(), History(records)
    alarms = []
    for check in CHECKS[kind]:
        sentence = check.judge(history, limits)
        if sentence:
            alarms.append(Alarm(check.name, sentence, _since(check, history, limits)))
    return alarms


def count(kind: str, records: Sequence[Mapping[str, Any]]) -> int:
    """How many alarms a run raises; 0 for one of a kind that nothing is known of."""
    return len(find(kind, records)) if kind in CHECKS else 0


def _since(check: Check, history: History, limits: Thresholds) -> int:
    since = history.steps[-1]
    for step in reversed(history.steps[:-1]):
        if not check.judge(history.upto(step), limits):
            break
        since = step
    return since


def watched(kind: str, thresholds: Thresholds | None = None) -> list[tuple[str, str]]:
    """(name, what raises it) of everything that is watched in a run of `kind`."""
    limits = thresholds or Thresholds()
    values = {
        **vars(limits),
        **{f"{name}_percent": percent(value) for name, value in vars(limits).items() if 0 < value < 1},
    }
    return [(check.name, check.watched.format(**values)) for check in CHECKS[kind]]


_FINITE = Check("not finite", judges.not_finite, "a metric that is not a finite number")

CHECKS: dict[str, list[Check]] = {
    "ppo": [
        _FINITE,
        Check(
            "collapse", judges.alike,
            "different additions (the words of a rewrite that its prompt does not have): fewer than {alike_percent} of "
            "a batch, or than {alike_fall_percent} of the share at the start",
        ),
        Check("collapse in validation", judges.alike_in_validation, "the same in validation, decoded as for use"),
        Check(
            "one suffix", judges.top,
            "more than {top_percent} of the rewrites make the same addition, as a set of modifiers, in training or in "
            "validation",
        ),
        Check("entropy", judges.entropy, "entropy per token below {entropy_fall_percent} of that at the start"),
        Check("KL", judges.kl, "KL to the SFT model above {kl:g} nats per rewrite"),
        Check(
            "KL growth", judges.kl_growth,
            "KL more than {kl_growth:g} times that of the {window} iterations before, from {kl_quiet:g} nats on",
        ),
        Check(
            "KL penalty", judges.penalty,
            "score up, but the reward with the KL penalty in it down, by {sigmas:g} standard errors each",
        ),
        Check("hidden content", judges.hides, "aesthetics up, relevance down, by {sigmas:g} standard errors each"),
        Check(
            "over-optimisation", judges.validation,
            "two validations in a row that lost {validation_loss_percent} of the gain up to the best one, while the "
            "score on the training prompts has not fallen",
        ),
        Check("length", judges.length, "fewer than {ended_percent} of the rewrites end before the limit"),
        Check("empty rewrites", judges.empty, "more than {empty_percent} empty rewrites, and twice that at the start"),
        Check("value network", judges.value, "explained variance of the returns below {explained_variance:g}"),
        Check("step size", judges.clipped, "more than {clip_fraction_percent} of the tokens clipped"),
    ],
    "sft": [
        _FINITE,
        Check("over-fitting", judges.over_fitted, "validation loss {sft_valid_percent} above its lowest"),
        Check("divergence", judges.diverged, "training loss {sft_loss:g} times its lowest, means of {window} steps"),
    ],
}  # fmt: skip
"""What is watched in a run of each kind."""
