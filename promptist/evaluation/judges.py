"""What each alarm looks at: `judge(history, limits)` gives its sentence, with numbers and threshold in it; None where
all is well or the run is too young to tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from promptist.evaluation.history import Array, History, moved
from promptist.evaluation.words import number, percent


@dataclass(frozen=True)
class Thresholds:
    """Where an alarm begins."""

    window: int = 10
    """Iterations (SFT: optimiser steps) whose mean is judged, at least 2."""
    sigmas: float = 3.0
    """A change of a window's mean counts from this many standard errors on (Welch)."""
    alike: float = 0.05
    """Collapse: share of different additions among the rewrites of a batch, at least."""
    alike_fall: float = 0.5
    """Collapse: what must be left of the first iterations' share of different additions."""
    top: float = 0.5
    """Collapse: share of the rewrites that make the most frequent addition, at most."""
    entropy_fall: float = 0.5
    """Collapse: what must be left of the first iterations' entropy per token."""
    kl: float = 15.0
    """Over-optimisation: KL to the SFT model in nats per rewrite, at most."""
    kl_growth: float = 2.0
    """Over-optimisation: factor from one window to the next, at most; looked at from `kl_quiet` nats on."""
    kl_quiet: float = 3.0
    validation_loss: float = 0.25
    """Over-optimisation: share of the validation score's gain that two validations in a row may lose again."""
    ended: float = 0.5
    """Length: share of rewrites that end by themselves before the limit, at least."""
    empty: float = 0.1
    """Share of empty rewrites, at most, where it is also twice what it was."""
    explained_variance: float = -0.1
    """Value network: explained variance of the returns, at least; below 0 it is worse than their mean."""
    clip_fraction: float = 0.3
    """Steps: share of tokens whose probability ratio was clipped, at most."""
    sft_valid: float = 0.05
    """SFT: rise of the validation loss over its lowest, at most, relative."""
    sft_loss: float = 1.5
    """SFT: training loss over its lowest window, at most, as a factor."""


def _mean(values: Array, digits: int = 2) -> str:
    return number(float(np.mean(values)), digits)


def _share(values: Array) -> str:
    return percent(float(np.mean(values)))


def not_finite(history: History, limits: Thresholds) -> str | None:
    broken = [key for key in history.names() if np.isnan(history[key]).any()]
    if not broken:
        return None
    first = min(history.steps_of(key)[int(np.argmax(np.isnan(history[key])))] for key in broken)
    return f"Not finite: {', '.join(sorted(broken))}, first in step {first}."


def alike(history: History, limits: Thresholds) -> str | None:
    recent, ends = history.recent("distinct_suffix", limits.window), history.ends("distinct_suffix", limits.window)
    if recent is not None and np.mean(recent) < limits.alike:
        return (
            f"Of the additions in the newest {limits.window} batches {_share(recent)} are different texts "
            f"(alarm below {percent(limits.alike)}): the policy writes the same words after every prompt."
        )
    if ends and np.mean(ends[1]) < limits.alike_fall * np.mean(ends[0]):
        return (
            f"The share of different additions fell from {_share(ends[0])} in the first {limits.window} batches to "
            f"{_share(ends[1])} in the newest (alarm below {percent(limits.alike_fall)} of it): the policy collapses "
            "to few suffixes."
        )
    return None


def alike_in_validation(history: History, limits: Thresholds) -> str | None:
    shares = history["valid/distinct_suffix"]
    if not len(shares):
        return None
    step = history.steps_of("valid/distinct_suffix")[-1]
    if shares[-1] < limits.alike:
        return (
            f"On the validation prompts {percent(shares[-1])} of the additions are different texts at step {step} "
            f"(alarm below {percent(limits.alike)}): decoded for use, the policy writes the same words everywhere."
        )
    if len(shares) > 1 and shares[-1] < limits.alike_fall * shares[0]:
        return (
            f"On the validation prompts the share of different additions fell from {percent(shares[0])} to "
            f"{percent(shares[-1])} at step {step} (alarm below {percent(limits.alike_fall)} of it)."
        )
    return None


def top(history: History, limits: Thresholds) -> str | None:
    recent, valid = history.recent("top_suffix", limits.window), history["valid/top_suffix"]
    if recent is not None and np.mean(recent) > limits.top:
        return (
            f"{_share(recent)} of the rewrites of a batch make the same addition (mean of the newest {limits.window}; "
            f"alarm above {percent(limits.top)})."
        )
    if len(valid) and valid[-1] > limits.top:
        return (
            f"On the validation prompts {percent(valid[-1])} of the rewrites make the same addition at step "
            f"{history.steps_of('valid/top_suffix')[-1]} (alarm above {percent(limits.top)}): decoded for use, the "
            "policy has one suffix for most prompts."
        )
    return None


def entropy(history: History, limits: Thresholds) -> str | None:
    ends = history.ends("entropy", limits.window)
    if ends is None or np.mean(ends[1]) >= limits.entropy_fall * np.mean(ends[0]):
        return None
    return (
        f"The policy's entropy fell from {_mean(ends[0])} to {_mean(ends[1])} nats per token "
        f"(alarm below {percent(limits.entropy_fall)} of it): it hardly explores any more."
    )


def kl(history: History, limits: Thresholds) -> str | None:
    recent = history.recent("kl", limits.window)
    if recent is not None and np.mean(recent) > limits.kl:
        return (
            f"The KL to the SFT model is {_mean(recent, 1)} nats per rewrite (alarm above {limits.kl:g}): so far from "
            "it, the reward models judge texts that no human wrote."
        )
    return None


def kl_growth(history: History, limits: Thresholds) -> str | None:
    values = history["kl"]
    if len(values) < 2 * limits.window:
        return None
    before, after = values[-2 * limits.window : -limits.window], values[-limits.window :]
    if np.mean(after) <= limits.kl_quiet or np.mean(after) <= limits.kl_growth * np.mean(before):
        return None
    return (
        f"The KL to the SFT model rose from {_mean(before, 1)} to {_mean(after, 1)} nats per rewrite within "
        f"{limits.window} iterations (alarm above {limits.kl_growth:g} times, from {limits.kl_quiet:g} nats on)."
    )


def penalty(history: History, limits: Thresholds) -> str | None:
    score, reward = history.ends("score", limits.window), history.ends("reward", limits.window)
    if not score or not reward or not moved(*score) >= limits.sigmas or not moved(*reward) <= -limits.sigmas:
        return None
    return (
        f"The score rose from {_mean(score[0])} to {_mean(score[1])}, but the reward, which has the KL penalty in it, "
        f"fell from {_mean(reward[0])} to {_mean(reward[1])} (alarm from {limits.sigmas:g} standard errors on): "
        "the policy pays more in KL than it gains."
    )


def hides(history: History, limits: Thresholds) -> str | None:
    aesthetic, relevance = history.ends("aesthetic", limits.window), history.ends("relevance", limits.window)
    if not aesthetic or not relevance:
        return None
    if not moved(*aesthetic) >= limits.sigmas or not moved(*relevance) <= -limits.sigmas:
        return None
    return (
        f"The relevance fell from {_mean(relevance[0])} to {_mean(relevance[1])} while the aesthetic gain rose from "
        f"{_mean(aesthetic[0])} to {_mean(aesthetic[1])} (alarm from {limits.sigmas:g} standard errors on): the "
        "pictures get prettier by showing less of what the user asked for."
    )


def validation(history: History, limits: Thresholds) -> str | None:
    valid, steps, score = history["valid/score"], history.steps_of("valid/score"), history["score"]
    if len(valid) < 3 or np.isnan(valid).any():
        return None
    best = int(np.argmax(valid))
    bound = valid[best] - limits.validation_loss * (valid[best] - valid[0])
    if best == 0 or best > len(valid) - 3 or not (valid[-2:] < bound).all():
        return None
    at_best = score[np.array(history.steps_of("score")) <= steps[best]][-limits.window :]
    now = score[-limits.window :]
    if not len(at_best) or np.mean(now) < np.mean(at_best):
        return None
    return (
        f"The score on the validation prompts fell from its best, {number(valid[best])} at step {steps[best]}, to "
        f"{number(valid[-2])} and {number(valid[-1])}, while that of the training prompts went from {_mean(at_best)} "
        f"to {_mean(now)} (alarm where two validations in a row lost {percent(limits.validation_loss)} of the gain): "
        "export-best/ is the model to use."
    )


def length(history: History, limits: Thresholds) -> str | None:
    recent = history.recent("eos", limits.window)
    if recent is None or np.mean(recent) >= limits.ended:
        return None
    length = history.recent("length", limits.window)
    words = f" with {_mean(length, 1)} tokens on average" if length is not None else ""
    return (
        f"Only {_share(recent)} of the rewrites end by themselves{words}, the others are cut by the length limit "
        f"(alarm below {percent(limits.ended)})."
    )


def empty(history: History, limits: Thresholds) -> str | None:
    ends = history.ends("empty", limits.window)
    if ends and np.mean(ends[1]) > limits.empty and np.mean(ends[1]) > 2 * np.mean(ends[0]):
        return (
            f"The share of empty rewrites, which leave the prompt as it is, grew from {_share(ends[0])} to "
            f"{_share(ends[1])} (alarm above {percent(limits.empty)} and twice the start)."
        )
    valid = history["valid/empty"]
    if len(valid) > 1 and valid[-1] > limits.empty and valid[-1] > 2 * valid[0]:
        return (
            f"On the validation prompts the share of empty rewrites grew from {percent(valid[0])} to "
            f"{percent(valid[-1])} (alarm above {percent(limits.empty)} and twice the start)."
        )
    return None


def value(history: History, limits: Thresholds) -> str | None:
    values = history["explained_variance"]
    if len(values) < 2 * limits.window:  # it starts from nothing
        return None
    recent = values[-limits.window :]
    if np.mean(recent) >= limits.explained_variance:
        return None
    return (
        f"The value network explains {_mean(recent)} of the returns' variance (alarm below "
        f"{number(limits.explained_variance)}): their mean would predict better, the advantages are noisy."
    )


def clipped(history: History, limits: Thresholds) -> str | None:
    recent = history.recent("clip_fraction", limits.window)
    if recent is None or np.mean(recent) <= limits.clip_fraction:
        return None
    return (
        f"{_share(recent)} of the tokens are clipped (alarm above {percent(limits.clip_fraction)}): the steps are too "
        "large, take a smaller optimizer.lr or fewer ppo.epochs."
    )


def over_fitted(history: History, limits: Thresholds) -> str | None:
    valid, steps = history["valid/loss"], history.steps_of("valid/loss")
    if len(valid) < 2 or np.isnan(valid).any():
        return None
    best = int(np.argmin(valid))
    if valid[-1] <= (1 + limits.sft_valid) * valid[best]:
        return None
    return (
        f"The validation loss rose from its lowest, {number(valid[best], 3)} at step {steps[best]}, to "
        f"{number(valid[-1], 3)} nats per token (alarm above {percent(limits.sft_valid)}): it learns by heart."
    )


def diverged(history: History, limits: Thresholds) -> str | None:
    loss = history["loss"]
    if len(loss) < 2 * limits.window or np.isnan(loss).any():
        return None
    means = np.convolve(loss, np.full(limits.window, 1 / limits.window), "valid")
    if means[-1] <= limits.sft_loss * means.min():
        return None
    return (
        f"The training loss rose to {number(means[-1], 3)} nats per token after {number(means.min(), 3)} "
        f"(means of {limits.window} steps; alarm above {limits.sft_loss:g} times): the learning rate is too high."
    )
