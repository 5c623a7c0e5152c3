"""Metrics: what is written, and what a resume takes back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from promptist.cluster.metrics import LoggingConfig, MetricLog, duration, progress_line, read_metrics
from promptist.errors import UserError

PLAIN = LoggingConfig(tensorboard=False)


def fill(folder: Path, steps: range, cfg: LoggingConfig = PLAIN) -> MetricLog:
    metrics = MetricLog(folder, cfg)
    for step in steps:
        metrics.log(step, {"reward": step / 10})
    return metrics


def test_lines(tmp_path: Path) -> None:
    metrics = MetricLog(tmp_path, PLAIN)
    metrics.log(
        1, {"reward": np.float32(0.5), "empty": np.int64(2), "note": "ä", "kl": float("nan"), "best": None}
    )
    lines = (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()  # readable while the log is open
    assert json.loads(lines[0]) == {
        "step": 1,
        "reward": 0.5,
        "empty": 2,
        "note": "ä",
        "kl": None,
        "best": None,
    }
    assert "NaN" not in lines[0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    metrics = MetricLog(tmp_path, PLAIN, rank=1)
    metrics.log(1, {"reward": 1.0})
    metrics.cut_back(0)
    metrics.close()
    assert not list(tmp_path.iterdir())


def test_cut_back_then_go_on_equals_the_undisturbed_log(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fill(tmp_path / "a", range(1, 8)).close()
    metrics = fill(tmp_path / "b", range(1, 6))
    metrics.cut_back(3)
    for step in range(4, 8):
        metrics.log(step, {"reward": step / 10})
    metrics.close()
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_cut_back_drops_a_torn_last_line(tmp_path: Path) -> None:
    fill(tmp_path, range(1, 4)).close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 4, "rew')
    MetricLog(tmp_path, PLAIN).cut_back(10)
    assert path.read_bytes() == whole


def test_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a metrics record"):
        read_metrics(path)


def test_cut_back_removes_later_rollouts_and_images(tmp_path: Path) -> None:
    for name in ("rollouts/step_000002.parquet", "rollouts/step_000003.parquet", "images/step_000004/a.png",
                 "images/step_000002_x.png", "images/other.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    MetricLog(tmp_path, PLAIN).cut_back(2)
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["images/other.png", "images/step_000002_x.png", "rollouts/step_000002.parquet"]


def test_tensorboard_readers_see_each_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fill(tmp_path, range(1, 6), LoggingConfig()).close()
    resumed = MetricLog(tmp_path, LoggingConfig())
    resumed.cut_back(3)
    resumed.log(4, {"reward": 40.0})
    resumed.close()
    reader = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    seen = [(e.step, round(e.value, 3)) for e in reader.Scalars("reward")]
    assert seen == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 40.0)]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3540, "59 min"),
        (3599, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (float("inf"), "?"),
        (-1, "0 s"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_progress_line() -> None:
    values: dict[str, float | str] = {
        "reward": 0.51234,
        "kl": -0.031,
        "rate": 1234.5,
        "lr": 5e-5,
        "empty": 3,
        "waited": "12 %",
    }
    assert progress_line("ppo", 12, 200, values, 3.0) == (
        "ppo 12/200 | reward 0.512 | kl -0.031 | rate 1234 | lr 5.0e-05 | empty 3 | waited 12 % | ETA 9 min"
    )


def test_bad_config() -> None:
    with pytest.raises(UserError, match=r"logging\.samples_every must not be negative"):
        LoggingConfig(samples_every=-1)
