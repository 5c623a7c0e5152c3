"""`promptist status`: what run folders and the queue say."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from promptist import cli
from promptist.cluster import status
from promptist.cluster.queue import QueueEntry
from promptist.errors import UserError
from tests.helpers_runs import add_attempt, make_run


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is installed: its queue is none of these tests' business."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


def fake_queue(monkeypatch: pytest.MonkeyPatch, *entries: tuple[str, str, str, str]) -> list[list[str]]:
    """A queue of (job, state, nodes, reason); returns what is asked."""
    asked: list[list[str]] = []
    known = {job: QueueEntry(job, state, nodes, why, "1:00", "9:00", "N/A") for job, state, nodes, why in entries}

    def states(jobs: Sequence[str]) -> dict[str, QueueEntry]:
        asked.append(list(jobs))
        return {k: v for k, v in known.items() if k in jobs or k.split("_")[0] in jobs}

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(status, "states", states)
    return asked


def columns(text: str) -> list[dict[str, str]]:
    """The table, read by the places of its heads."""
    heads, *lines = text.splitlines()
    names = ["run", "job", "state", "progress", "ETA", "last heard of", "checkpoint", "attempts", "alarms"]
    starts = {name: heads.index(name) for name in names if name in heads}
    ends = [*list(starts.values())[1:], 10_000]
    return [
        {name: line[start:end].strip() for (name, start), end in zip(starts.items(), ends, strict=True)}
        for line in lines
        if not line.startswith("    ")
    ]


def add_checkpoint(run: Path, step: int, age_s: float) -> None:
    folder = run / f"checkpoints/step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step}))
    size = (folder / "state.json").stat().st_size
    record = {"format": 1, "step": step, "world_size": 1, "files": {"state.json": {"size": size, "sha256": ""}}}
    (folder / "complete.json").write_text(json.dumps(record))
    os.utime(folder / "complete.json", (time.time() - age_s,) * 2)


def test_all_runs_without_a_scheduler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ppo = make_run(tmp_path / "demo/ppo", "ppo", 200, 37)
    make_run(tmp_path / "demo/sft", "sft", 40, 40, done=time.time() - 7200)
    make_run(tmp_path / "fresh", "ppo", 9, 0)
    with (ppo / "metrics.jsonl").open("a") as file:
        file.write('{"step": 38, "time/iteration": 60, "time/eta_s": 9740}\n{"step": 3')  # torn by a crash
    os.utime(ppo / "metrics.jsonl", (time.time() - 30,) * 2)
    add_checkpoint(ppo, 30, age_s=600)
    assert cli.main(["status", "--root", str(tmp_path)]) == 0
    rows = columns(capsys.readouterr().out)
    assert [row["run"] for row in rows] == [str(tmp_path / name) for name in ("demo/ppo", "demo/sft", "fresh")]
    assert rows[0] | {"run": ""} == {
        "run": "", "job": "ppo", "state": "", "progress": "38/200", "ETA": "2 h 42 min", "last heard of": "30 s ago",
        "checkpoint": "step_000030, 10 min ago",
    }  # fmt: skip
    assert (rows[1]["state"], rows[1]["progress"], rows[1]["ETA"]) == ("done 2 h 00 min ago", "40/40", "")
    assert (rows[2]["job"], rows[2]["progress"], rows[2]["last heard of"]) == ("ppo", "0/9", "")


def test_sft_has_its_pace_in_each_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "sft", "sft", 100, 0)
    (run / "metrics.jsonl").write_text('{"step": 40, "time/step": 2.0}\n')
    os.utime(run / "metrics.jsonl", (time.time() - 3600,) * 2)  # waits in the queue since
    assert status.look([run])[0].eta == "2 min"


def test_queue_and_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = make_run(tmp_path / "a", "ppo", 200, 100)
    add_attempt(running, "12", 0, outcome="stopped", exit_code=75, ended=500, started=900)
    crash = "rank 3 died\nof hunger"
    add_attempt(running, "12", 1, outcome="crashed", exit_code=1, ended=180, started=400, sentence=crash)
    add_attempt(running, "12", 2, started=60)
    waiting = make_run(tmp_path / "b", "ppo", 200, 100)
    add_attempt(waiting, "13", 0, outcome="stopped", exit_code=75, ended=500, requeued=True)
    bad = make_run(tmp_path / "c", "ppo", 200, 0)
    add_attempt(bad, "14", 0, outcome="bad input", exit_code=64, ended=3600, sentence="data.valid is empty")
    lost = make_run(tmp_path / "d", "ppo", 200, 10)
    add_attempt(lost, "15", 0)
    asked = fake_queue(
        monkeypatch,
        ("12", "RUNNING", "node[1-2]", "None"),
        ("13", "PENDING", "", "Resources"),
        ("14", "FAILED", "node1", "NonZeroExitCode"),
        ("99", "RUNNING", "node4", "None"),
    )
    a, b, c, d = status.look([running, waiting, bad, lost])
    assert asked == [["12", "13", "14", "15"]]
    assert a.state == "running (12, node[1-2])"
    assert a.attempts == "3: 1 stopped, 1 crashed"
    assert a.trouble == "crashed 3 min ago (job 12, start 1): rank 3 died of hunger"
    assert (b.state, b.attempts, b.trouble) == ("pending (13, Resources)", "1: 1 stopped", "")
    assert c.state == "bad input 1 h 00 min ago"
    assert c.trouble.endswith("(job 14, start 0): data.valid is empty")
    assert d.state == "gone from the queue"
    text = status.table([a, b, c, d]).splitlines()
    assert text[2] == f"    {a.trouble}"
    assert len(text) == 1 + 4 + 2


def test_shards_are_counted_and_their_tasks_taken_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "eval", "ppo", 1, 0)
    (run / "config.yaml").write_text("run: {name: eval}\nmethods: [{name: user, kind: user}]\n")
    (run / "finished").mkdir()
    (run / "finished/attempt_0001_rank_00000.jsonl").write_text("{}\n{}\n{}\n")
    assert status.look([run])[0].progress == "3 pieces"
    for number in (1, 2, 5):
        (run / f"finished/shard_{number:04d}_of_0016.json").write_text("{}")
    (run / "finished/shard_0001_of_0001.json").write_text("{}")
    os.utime(run / "finished/shard_0001_of_0001.json", (0, 0))  # an earlier evaluation, in one piece
    (run / "submission").mkdir()
    (run / "submission/submit.json").write_text(json.dumps({"jobs": ["20_0", "20_1", "20_2"]}))
    (run / "submission/reduce.json").write_text(json.dumps({"jobs": ["21"]}))
    alive = [("20_0", "RUNNING", "n1", "None"), ("20_1", "RUNNING", "n2", "None"), ("21", "PENDING", "", "Dependency")]
    fake_queue(monkeypatch, *alive, ("20_2", "COMPLETED", "", "None"))
    row = status.look([run])[0]
    assert (row.kind, row.progress) == ("eval", "3/16 shards")
    assert row.state == "2 running, 1 pending (20, 21)"
    add_attempt(run, "20_2", 0, outcome="done", exit_code=0, ended=60)
    fake_queue(monkeypatch)
    assert status.look([run])[0].state == "not reduced yet"
    (run / "done.json").write_text("{}")
    assert status.look([run])[0].state == "done 0 s ago"


def test_a_run_that_waits_for_its_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs/ppo/submission"
    folder.mkdir(parents=True)
    (folder / "ppo.yaml").write_text("ppo: {iterations: 30}\n")
    (folder / "submit.json").write_text(json.dumps({"jobs": ["7"]}))
    sweep = tmp_path / "runs/ppo.sweep-1/submission"
    sweep.mkdir(parents=True)
    (sweep / "submit.json").write_text(json.dumps({"jobs": ["7_0"]}))
    (sweep / "submit.configs").write_text("")
    fake_queue(monkeypatch, ("7", "PENDING", "", "Priority"))
    assert status.find_runs(tmp_path) == [folder.parent]
    row = status.look([folder.parent])[0]
    assert (row.kind, row.progress, row.state) == ("ppo", "0/30", "pending (7, Priority)")


def test_a_queue_that_does_not_answer_is_said_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "a", "ppo", 200, 100)
    add_attempt(run, "12", 0)

    def silent(jobs: Sequence[str]) -> dict[str, QueueEntry]:
        raise UserError("squeue failed: is the SLURM controller up?")

    fake_queue(monkeypatch)
    monkeypatch.setattr(status, "states", silent)
    row = status.look([run])[0]
    assert (row.state, row.progress) == ("", "100/200")
    assert "the queue is not known: squeue failed" in caplog.text


def test_folders_of_runs_and_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "elsewhere/a", "ppo", 200, 100)
    assert cli.main(["status", str(run.parent), str(run)]) == 0
    assert [row["run"] for row in columns(capsys.readouterr().out)] == [str(run)] * 2
    (tmp_path / "empty").mkdir()
    assert cli.main(["status", str(tmp_path / "empty")]) == 64
    assert "config.yaml" in capsys.readouterr().err
    assert cli.main(["status", "--root", str(tmp_path / "none")]) == 64
    (tmp_path / "config.yaml").write_text("ppo: [")
    with pytest.raises(UserError, match="not valid YAML"):
        status.look([tmp_path])
    with pytest.raises(UserError, match="is not a run folder"):
        status.look([tmp_path / "empty"])


def test_alarms_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KL of 30 nats in the first run: one alarm. The column is there only where a run has some."""
    for name, kl in (("far", 30.0), ("near", 1.0)):
        run = make_run(tmp_path / name, "ppo", 40, 0)
        lines = [json.dumps({"step": step, "kl": kl}) + "\n" for step in range(1, 21)]
        (run / "metrics.jsonl").write_text("".join(lines))
    assert cli.main(["status", "--root", str(tmp_path)]) == 0
    assert [row["alarms"] for row in columns(capsys.readouterr().out)] == ["1", ""]
    assert cli.main(["status", str(tmp_path / "near")]) == 0
    assert "alarms" not in capsys.readouterr().out.splitlines()[0]


def test_an_incomplete_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "ppo", 20, 12)
    for step in (5, 10):
        folder = run / f"checkpoints/step_{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step}))
    assert status.look([run])[0].checkpoint == ""  # neither holds complete.json
    add_checkpoint(run, 4, age_s=60)
    assert status.look([run])[0].checkpoint == "step_000004, 1 min ago"
