"""States of jobs by squeue, and the watcher that submitit's jobs use; the commands are stand-ins that print what SLURM
22.05 printed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from promptist.cluster import queue, watcher
from promptist.errors import UserError

ANSWER = """\
2|COMPLETED|node1|None|0:01|59:59|2026-11-25T09:24:08
1_1|PENDING||JobArrayTaskLimit|0:00|1:00:00|N/A
1_0|RUNNING|node1|None|0:04|59:56|2026-11-25T09:24:08
4+0|RUNNING|node[1-2]|None|0:04|59:56|2026-11-25T09:24:08
4+1|RUNNING|node3|None|0:04|59:56|2026-11-25T09:24:08
5|CONFIGURING|node4|None|0:00|1:00:00|N/A
"""


class Commands:
    """Programs of a folder that is first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        (self.folder / f"{name}.out").write_text(stdout)
        (self.folder / f"{name}.err").write_text(stderr)
        script = f"#!/bin/sh\ncat {self.folder}/{name}.out\ncat {self.folder}/{name}.err >&2\nexit {code}\n"
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)
        time.sleep(0.01)  # submitit does not ask twice within a millisecond


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = Commands(tmp_path)
    made.write("squeue", ANSWER)
    made.write("sacct", stderr="Slurm accounting storage is disabled\n", code=1)
    return made


def test_states(commands: Commands) -> None:
    found = queue.states(["1_0", "2", "4", "99"])
    assert {job: entry.state for job, entry in found.items()} == {"1_0": "RUNNING", "2": "COMPLETED", "4": "RUNNING"}
    assert found["4"].nodes == "node[1-2]"  # the first component's
    assert (found["2"].has_ended, found["1_0"].has_ended) == (True, False)
    assert found["1_0"].time_left == "59:56"
    assert sorted(queue.states(["1"])) == ["1_0", "1_1"]  # an array as a whole
    assert queue.states([]) == {}


def test_job_that_is_gone_and_controller_that_is_down(commands: Commands) -> None:
    commands.write("squeue", stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert queue.states(["99"]) == {}
    commands.write("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    with pytest.raises(UserError, match=r"Unable to contact slurm controller.*controller up"):
        queue.states(["1"])


def test_no_squeue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="squeue is not on PATH"):
        queue.states(["1"])


def test_watcher_without_accounting(commands: Commands) -> None:
    watch = watcher.Watcher()
    assert watch.get_state("2", mode="force") == "COMPLETED"
    assert watch.get_info("4", mode="force")["NodeList"] == "node[1-2]"
    ended = {job: watch.is_done(job, mode="force") for job in ("1_0", "1_1", "2", "4", "5")}
    assert ended == {"1_0": False, "1_1": False, "2": True, "4": False, "5": False}
    commands.write("squeue", stderr="slurm_load_jobs error: Unable to contact slurm controller\n", code=1)
    assert not watch.is_done("1_0", mode="force")  # nobody knows: not done
    commands.write("squeue", ANSWER.replace("1_0|RUNNING", "1_0|NODE_FAIL"))
    assert watch.is_done("1_0", mode="force")
    commands.write("squeue")
    assert watch.is_done("5", mode="force")
    assert watch.get_state("5") == watcher.GONE


def test_watcher_with_accounting(commands: Commands) -> None:
    commands.write("squeue", code=1)
    lines = ["JobID|State|NodeList", "7+0|RUNNING|node1", "7+1|RUNNING|node2", "8|FAILED|node3", "9|PREEMPTED|node3"]
    commands.write("sacct", "\n".join(lines))
    watch = watcher.Watcher()
    assert {job: watch.is_done(job, mode="force") for job in ("7", "8", "9")} == {"7": False, "8": True, "9": False}
    assert watch.get_state("7") == "RUNNING"
