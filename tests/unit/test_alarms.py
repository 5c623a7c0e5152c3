"""Alarms: each on made-up metrics that have its trouble, on both sides of its threshold, and none on a run that does
well."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from promptist.evaluation.alarms import CHECKS, find, watched
from promptist.evaluation.history import History, moved
from promptist.evaluation.judges import Thresholds

Records = list[dict[str, Any]]
WINDOW = Thresholds().window


def ppo(steps: int = 60, **changed: Any) -> Records:
    """A run that does well, with noise; `changed` replaces a metric by a function of the share of the run that is done
    (None: leave it out). Keys with `__` stand for `valid/...`."""
    random = np.random.default_rng(7)
    made = {
        "score": lambda t: -0.1 + 0.5 * t, "reward": lambda t: -0.1 + 0.3 * t, "aesthetic": lambda t: 0.3 + 0.4 * t,
        "relevance": lambda t: -0.4 + 0.1 * t, "kl": lambda t: 1.5 * math.sqrt(t), "entropy": lambda t: 0.6 - 0.1 * t,
        "length": lambda t: 12, "eos": lambda t: 0.9, "empty": lambda t: 0.02,
        "distinct_suffix": lambda t: 0.8 - 0.2 * t, "explained_variance": lambda t: 0.5 * t,
        "clip_fraction": lambda t: 0.05, "top_suffix": lambda t: 0.1 + 0.2 * t, "valid/top_suffix": lambda t: 0.3,
        "valid/score": lambda t: 0.1 + 0.3 * t, "valid/distinct_suffix": lambda t: 0.5, "valid/empty": lambda t: 0.0,
    }  # fmt: skip
    noisy = {"score", "reward", "aesthetic", "relevance"}
    made |= {name.replace("__", "/"): of for name, of in changed.items()}
    records: Records = [{"step": 0, **{k: of(0.0) for k, of in made.items() if of and k.startswith("valid/")}}]
    for step in range(1, steps + 1):
        t = (step - 1) / (steps - 1)
        record = {"step": step}
        for key, of in made.items():
            if of is not None and (not key.startswith("valid/") or step % 10 == 0):
                record[key] = of(t) + (random.normal(0, 0.04) if key in noisy else 0.0)
        records.append(record)
    return records


def peak(t: float) -> float:
    """Validation: 0.1 before the first step, 0.4, 0.5 at its best, then 0.2."""
    return 0.1 if t == 0 else 0.4 if t < 0.2 else 0.5 if t < 0.4 else 0.2


def names(records: Records, kind: str = "ppo") -> list[str]:
    return [alarm.name for alarm in find(kind, records)]


def test_a_run_that_does_well_is_quiet_all_along() -> None:
    records = ppo()
    assert [names(records[:n]) for n in range(1, len(records) + 1)] == [[]] * len(records)


@pytest.mark.parametrize(
    ("changed", "alarm", "numbers"),
    [
        ({"distinct_suffix": lambda t: 0.04}, "collapse", ["4 %", "below 5 %"]),
        ({"distinct_suffix": lambda t: 0.8 - 0.6 * t}, "collapse", ["75 %", "25 %", "below 50 %"]),
        ({"valid__distinct_suffix": lambda t: 0.5 - 0.3 * t}, "collapse in validation", ["50 %", "20 %", "step 60"]),
        ({"valid__distinct_suffix": lambda t: 0.03}, "collapse in validation", ["3 %", "below 5 %"]),
        ({"top_suffix": lambda t: 0.55}, "one suffix", ["55 %", "above 50 %"]),
        ({"valid__top_suffix": lambda t: 0.75 * t}, "one suffix", ["75 %", "step 60", "above 50 %"]),
        ({"entropy": lambda t: 0.6 if t < 0.5 else 0.14}, "entropy", ["0.60 to 0.14 nats", "below 50 %"]),
        ({"kl": lambda t: 17 * math.sqrt(t)}, "KL", ["16.3 nats", "above 15"]),
        ({"kl": lambda t: 2 if t < 49.5 / 59 else 4.5}, "KL growth", ["2.0 to 4.5 nats", "2 times", "3 nats"]),
        ({"reward": lambda t: -0.1 - 0.3 * t}, "KL penalty", ["-0.1", "3 standard errors"]),
        ({"relevance": lambda t: -0.4 - 0.3 * t}, "hidden content", ["fell from −0.4", "3 standard errors"]),
        ({"valid__score": peak}, "over-optimisation", ["0.50 at step 20", "0.20 and 0.20", "25 % of the gain"]),
        ({"eos": lambda t: 0.45}, "length", ["45 %", "12.0 tokens", "below 50 %"]),
        ({"empty": lambda t: 0.04 + 0.2 * t}, "empty rewrites", ["6 %", "22 %", "above 10 %"]),
        ({"valid__empty": lambda t: 0.3 * t}, "empty rewrites", ["0 % to 30 %"]),
        ({"explained_variance": lambda t: -0.2}, "value network", ["−0.20", "below −0.10"]),
        ({"clip_fraction": lambda t: 0.35}, "step size", ["35 %", "above 30 %"]),
    ],
)  # fmt: skip
def test_each_trouble_raises_its_alarm_alone(changed: dict[str, Any], alarm: str, numbers: list[str]) -> None:
    (found,) = find("ppo", ppo(**changed))
    assert found.name == alarm
    for said in numbers:
        assert said.replace("-0", "−0") in found.sentence


@pytest.mark.parametrize(
    "changed",
    [
        {"distinct_suffix": lambda t: 0.06},
        {"distinct_suffix": lambda t: 0.8 - 0.4 * t},  # to 0.43 of 0.77
        {"top_suffix": lambda t: 0.45, "valid__top_suffix": lambda t: 0.5},
        {"entropy": lambda t: 0.6 - 0.25 * t},
        {"kl": lambda t: 14 * math.sqrt(t)},
        {"kl": lambda t: 0.1 + 2.5 * t**6},  # grows fast, but is small
        {"reward": lambda t: -0.1},
        {"relevance": lambda t: -0.4 - 0.3 * t, "aesthetic": lambda t: 0.3},  # falls, but buys nothing
        {"relevance": lambda t: -0.4 - 0.01 * t},  # within the noise
        {"valid__score": lambda t: 0.1 + 0.3 * (t if t < 0.5 else 0.4)},  # loses a fifth of the gain
        {"valid__score": peak, "score": lambda t: 0.5 - t, "reward": lambda t: 0.4 - t},  # so does training
        {"eos": lambda t: 0.55},
        {"empty": lambda t: 0.2},  # as at the start
        {"explained_variance": lambda t: -0.05},
        {"clip_fraction": lambda t: 0.25},
    ],
)
def test_this_side_of_the_threshold_it_is_quiet(changed: dict[str, Any]) -> None:
    assert names(ppo(**changed)) == []


def test_too_young_to_tell() -> None:
    """One bad iteration is no window, and a change needs two."""
    assert names(ppo(kl=lambda t: 99)[:WINDOW]) == []
    assert names(ppo(kl=lambda t: 99)[: WINDOW + 1]) == ["KL"]
    assert names(ppo(entropy=lambda t: 0.6 * (t < 0.1))[: 2 * WINDOW]) == []
    assert names([]) == []


def test_since_which_step() -> None:
    """KL 0 up to step 30 and 30 from 31 on: the mean of ten passes 15 with the sixth of them."""
    records = ppo(kl=None)
    for record in records[1:]:
        record["kl"] = 30.0 if record["step"] > 30 else 0.0
    (alarm,) = [a for a in find("ppo", records) if a.name == "KL"]
    assert alarm.since == 36
    assert [a.since for a in find("ppo", records[:37]) if a.name == "KL"] == [36]
    # Interrupted: only the newest stretch counts.
    records[45:50] = [{**r, "kl": -60.0} for r in records[45:50]]
    (alarm,) = [a for a in find("ppo", records) if a.name == "KL"]
    assert alarm.since > 45


def test_a_number_that_is_not_finite() -> None:
    records = ppo()
    records[40]["score"] = records[41]["policy_loss"] = None
    (alarm,) = find("ppo", records)
    assert alarm.name == "not finite" and alarm.sentence == "Not finite: policy_loss, score, first in step 40."
    records[-1] |= {"relevance": None, "aesthetic": None, "reward": None, "valid/score": None}
    assert names(records) == ["not finite"]  # a window with a gap in it says nothing


def sft(steps: int = 100, valid: Any = lambda t: 0.5, loss: Any = lambda t: 3 * (1 - t) + 0.5) -> Records:
    records: Records = [{"step": s, "loss": loss(s / steps)} for s in range(1, steps + 1)]
    for record in records[9::10]:
        record["valid/loss"] = valid(record["step"] / steps)
    return records


def test_sft() -> None:
    assert names(sft(), "sft") == []
    (alarm,) = find("sft", sft(valid=lambda t: 0.5 + abs(t - 0.5) / 5))
    assert alarm.name == "over-fitting" and "0.500 at step 50, to 0.600" in alarm.sentence and alarm.since == 70
    (alarm,) = find("sft", sft(loss=lambda t: 1.0 if t <= 0.9 else 2.0))
    assert alarm.name == "divergence" and "2.000" in alarm.sentence and "1.000" in alarm.sentence
    assert names(sft(valid=lambda t: 0.5 + 0.02 * (t > 0.5), loss=lambda t: 1.0 if t <= 0.9 else 1.4), "sft") == []


def test_a_change_in_standard_errors_is_welchs() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0, 1, 10), random.normal(1, 3, 12)
    assert moved(a, b) == pytest.approx(-stats.ttest_ind(a, b, equal_var=False).statistic, rel=1e-12)
    flat = np.full(5, 0.1)
    assert moved(flat, flat) == 0 and moved(flat, flat + 1) == math.inf and moved(flat, flat - 1) == -math.inf


def test_what_is_watched_is_said_with_its_thresholds() -> None:
    words = dict(watched("ppo", Thresholds(kl=7, ended=0.25)))
    assert "above 7 nats" in words["KL"] and "fewer than 25 %" in words["length"]
    assert set(words) == {check.name for check in CHECKS["ppo"]}
    assert not any("{" in sentence for kind in CHECKS for _, sentence in watched(kind))
    assert names(ppo(kl=lambda t: 8.0)) == [] and find("ppo", ppo(kl=lambda t: 8.0), Thresholds(kl=7))[0].name == "KL"


def test_history_up_to_a_step(tmp_path: Path) -> None:
    history = History([{"step": 1, "a": 1.0}, {"step": 2, "b": 5, "note": "text"}, {"step": 3, "a": 3.0}])
    assert history.names() == ["a", "b"] and history.steps == [1, 2, 3]
    cut = history.upto(2)
    assert list(cut["a"]) == [1.0] and cut.steps_of("a") == [1] and list(cut["b"]) == [5.0] and cut.steps == [1, 2]
    assert list(history.upto(0)["a"]) == [] and json.dumps(history.steps_of("a")) == "[1, 3]"
