"""From raw measurements to the table's metrics, against values worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from promptist.evaluation.evaluate import unfinished
from promptist.evaluation.lengths import CLIP, GPT2, Ruler
from promptist.evaluation.measures import Scoring, build_table
from promptist.evaluation.plan import Entry, Plan
from promptist.evaluation.prompts import EvalPrompt
from promptist.evaluation.store import Store
from promptist.evaluation.table import Table, read_table, write_table
from promptist.reward.messages import Measurement


@dataclass
class Terms:
    slope: float
    offset: float


X = "a red boat"
PLAN = Plan(
    [EvalPrompt(X, "in"), EvalPrompt("two cats", "out", "two cats, art")],
    [
        Entry("user", kind="user"),
        Entry("human", kind="human"),
        Entry("ppo", 0, "model", "m0", "r"),
        Entry("ppo", 1, "model", "m1", "r"),
        Entry("best-of", kind="best_of"),
    ],
    {
        "user": {X: X, "two cats": "two cats"},
        "human": {"two cats": "two cats, art"},
        "best-of": {X: X, "two cats": "two cats"},
    },
    images=2,
    pictures=1,
    batch=4,
    rulers=(Ruler(GPT2, "g", "gpt2"), Ruler(CLIP, "c", "clip", 5)),
)
SCORING = Scoring(
    Terms(20.0, 5.6),
    {"rival": Terms(10.0, 3.0), "v1": None},
    lambda x, y: {"words_kept": float(x in y), "empty": float(not y)},
)


def shot(cosine: float, aesthetic: float, picture: str | None = None) -> Measurement:
    extra = {"rival.cosine": cosine / 2, "rival.aesthetic": aesthetic * 10, "v1.aesthetic": aesthetic + 1}
    return Measurement(cosine, aesthetic, {**extra, "pick.score": 21.5}, picture)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """x: cosines 0.30 and 0.20, aesthetics 5.0 and 5.4; y: 0.25 and 0.35, 6.0 and 6.5."""
    found = Store(tmp_path / "finished", "w")
    for x in (p.x for p in PLAN.prompts):
        plain, better = (
            (shot(0.30, 5.0, "a.png"), shot(0.20, 5.4, "b.png")),
            (shot(0.25, 6.0, "c.png"), shot(0.35, 6.5)),
        )
        for k in range(2):
            found.add_images({("p", x, x, k): plain[k], ("p", f"{x}, art", x, k): better[k]})
        found.add_rewrites("m0", {x: f"{x}, art"})
        found.add_rewrites("m1", {x: ""})
        found.add_ratios("m0", "r", {x: 3.5})
        found.add_ratios("m1", "r", {x: -0.25})
        found.add_lengths("gpt2", {x: 3, f"{x}, art": 5})
        found.add_lengths("clip", {x: 5, f"{x}, art": 7})
    for name in "abc":
        (tmp_path / f"{name}.png").touch()
    return found


@pytest.fixture
def table(store: Store, tmp_path: Path) -> Table:
    assert unfinished(PLAN, PLAN.prompts, store, "p", tmp_path) == []
    return build_table(PLAN, store, "p", SCORING, {"prompts": "abc"})


def test_metrics_of_a_picture_are_those_of_the_papers_equations(table: Table) -> None:
    def value(metric: str, seed: int, replica: int = 0) -> float:
        return table.value(metric, "ppo", X, replica, seed)

    assert [value("cosine", k) for k in (0, 1)] == [0.25, 0.35]
    assert [value("aesthetic", k) for k in (0, 1)] == [6.0, 6.5]
    assert [value("relevance", k) for k in (0, 1)] == pytest.approx([20 * 0.25 - 5.6, 0.0])
    assert [value("gain", k) for k in (0, 1)] == pytest.approx([1.0, 1.1])  # 6.0 - 5.0, 6.5 - 5.4: at equal noise
    assert [value("reward", k) for k in (0, 1)] == pytest.approx([1.0 - 0.6, 1.1])
    # The rival has its own scale and its own hinge: min(10 * 0.125 - 3, 0), 60 - 50.
    assert value("rival.relevance", 0) == pytest.approx(-1.75)
    assert value("rival.gain", 0) == pytest.approx(10.0) and value("rival.reward", 0) == pytest.approx(8.25)
    assert value("v1.gain", 1) == pytest.approx(1.1) and value("pick.score", 1) == 21.5
    assert "v1.relevance" not in table.metrics and "v1.reward" not in table.metrics
    assert "pick.gain" not in table.metrics


def test_the_users_own_row_has_no_gain_and_a_prompt_left_alone_scores_as_the_users(table: Table) -> None:
    for k in (0, 1):
        assert table.value("gain", "user", X, 0, k) == 0 == table.value("rival.gain", "user", X, 0, k)
        assert table.value("reward", "ppo", X, 1, k) == table.value("reward", "user", X, 0, k)
    assert table.value("empty", "ppo", X, 1) == 1 and table.value("empty", "ppo", X, 0) == 0


def test_best_of_shows_the_plain_picture_with_the_best_reward(table: Table) -> None:
    """Plain rewards are 5.0 + 0 and 5.4 - 1.6: the first picture wins, though the second is the prettier one."""
    assert table.value("aesthetic", "best-of", X, seed=0) == 5.0
    assert table.value("gain", "best-of", X, seed=0) == pytest.approx(5.0 - 5.2)  # against the mean of the two
    assert table.value("rival.gain", "best-of", X, seed=0) == pytest.approx(50 - 52)
    assert table.scores("reward", "best-of").values.shape == (2, 1)
    with pytest.raises(KeyError):
        table.value("aesthetic", "best-of", X, seed=1)
    chosen = [p for p in table.pictures if p.method == "best-of"]
    assert [(p.seed, p.path) for p in chosen] == [(0, "a.png"), (0, "a.png")]


def test_best_of_takes_the_first_of_equals_and_its_picture_is_kept(store: Store, tmp_path: Path) -> None:
    store.add_images({("p", X, X, 1): shot(0.30, 5.5)})
    assert [p.x for p in unfinished(PLAN, PLAN.prompts, store, "p", tmp_path)] == [X]  # a picture is to be kept
    store.add_images(
        {("p", X, X, 1): shot(0.30, 5.5, "b.png"), ("p", "two cats", "two cats", 1): shot(0.30, 5.0, "b.png")}
    )
    table = build_table(PLAN, store, "p", SCORING, {})
    assert {p.prompt: p.path for p in table.pictures if p.method == "best-of"} == {X: "b.png", "two cats": "a.png"}
    assert {p.path for p in table.pictures if p.method == "user"} == {"a.png"}  # `pictures` is 1


def test_metrics_of_a_text(table: Table) -> None:
    assert table.value("words_kept", "ppo", X) == 1
    assert [table.value("kl", "ppo", X, r) for r in (0, 1)] == [3.5, -0.25]
    assert [table.value(GPT2, "ppo", X, r) for r in (0, 1)] == [5, 3]
    assert [table.value("over_clip", "ppo", X, r) for r in (0, 1)] == [1, 0]  # 7 and 5 of 5
    assert ("kl", "user") not in {(m.metric, m.method) for m in table.measures}


def test_rows_and_their_fingerprints(table: Table, tmp_path: Path) -> None:
    assert table.sets == ["in", "out"] and table.methods == ["user", "ppo", "best-of", "human"]
    assert table.replicas("ppo") == [0, 1] and table.replicas("user") == [0]
    assert table.scores("reward", "human").prompts == ["two cats"]
    np.testing.assert_allclose(table.scores("reward", "ppo", "in").values, [[0.75, (0 - 1.6) / 2]])
    assert {(m.replica, m.model) for m in table.measures if m.method == "ppo"} == {(0, "m0"), (1, "m1")}
    assert {m.model for m in table.measures if m.method != "ppo"} == {""}
    write_table(tmp_path, table)
    again = read_table(tmp_path)
    assert (again.measures, again.texts, again.pictures) == (table.measures, table.texts, table.pictures)
    assert again.meta == {"prompts": "abc"}


@pytest.mark.parametrize("lost", ["rewrites", "ratios", "lengths", "images"])
def test_whatever_is_missing_of_a_prompt_is_noticed(store: Store, tmp_path: Path, lost: str) -> None:
    record = getattr(store, lost)
    del record[next(key for key in record if X in key)]
    assert [p.x for p in unfinished(PLAN, PLAN.prompts, store, "p", tmp_path)] == [X]
