"""The run folder: what a start leaves behind, and what a second start may change."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from promptist import config
from promptist.cluster.roles import World
from promptist.cluster.run_folder import RunConfig, open_run, write_atomically
from promptist.errors import UserError
from tests.conftest import REPOSITORY

ALONE = World(0, 1, "both", 0, 1, 0, ("both",), ("host",), (0,))


@dataclass
class Job:
    run: RunConfig = field(default_factory=RunConfig)
    iterations: int = 10
    lr: float = 1e-3


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def job(root: Path, **values: float) -> Job:
    return Job(RunConfig("demo", str(root)), **values)  # type: ignore[arg-type]


def test_first_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = job(tmp_path / "runs")
    folder = open_run(cfg.run, cfg, ALONE)
    assert folder.path == tmp_path / "runs" / "demo"
    assert folder.attempt == 1
    assert {p.name for p in folder.path.iterdir()} == {
        "config.yaml", "env.json", "logs", "checkpoints", "rollouts", "images",
    }  # fmt: skip
    assert config.load(Job, folder.path / "config.yaml") == cfg
    env = json.loads((folder.path / "env.json").read_text())
    assert env["attempt"] == 1
    assert env["versions"]["numpy"]
    assert env["ranks"][0]["role"] == "both"
    assert env["ranks"][0]["cpus"] >= 1
    assert {"commit", "diff", "command", "python"} <= env.keys()
    logging.getLogger("promptist.rl").info("hello")
    logging.getLogger("urllib3").info("noise")
    logging.getLogger("urllib3").warning("trouble")
    written = (folder.path / "logs" / "attempt_1" / "00000.log").read_text()
    assert "hello" in written
    assert "noise" in written
    shown = capsys.readouterr().err
    assert "hello" in shown
    assert "trouble" in shown
    assert "noise" not in shown


def test_second_start_is_a_new_attempt_and_logs_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = job(tmp_path)
    open_run(cfg.run, cfg, ALONE)
    folder = open_run(cfg.run, cfg, ALONE)
    assert folder.attempt == 2
    logging.getLogger("promptist").info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert "once" not in (folder.path / "logs" / "attempt_1" / "00000.log").read_text()


def test_only_allowed_keys_may_change(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    open_run(cfg.run, cfg, ALONE)
    longer = job(tmp_path, iterations=20)
    assert open_run(longer.run, longer, ALONE, may_change={"iterations"}).attempt == 2
    other = job(tmp_path, iterations=20, lr=1.0)
    with pytest.raises(UserError, match=r"lr was 0\.001 and is now 1\.0"):
        open_run(other.run, other, ALONE, may_change={"iterations"})
    assert config.load(Job, tmp_path / "demo" / "config.yaml") == longer


RACE = """
import sys, time
from pathlib import Path
from promptist.cluster.roles import World
from promptist.cluster.run_folder import RunConfig, open_run
from tests.unit.test_run_folder import ALONE, job
cfg = job(Path(sys.argv[1]))
time.sleep(max(0, float(sys.argv[2]) - time.time()))
print(open_run(cfg.run, cfg, ALONE).attempt)
"""


def test_processes_that_open_a_run_at_the_same_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(tmp_path), str(time.time() + 4)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(4)]
    attempts = [int(process.communicate(timeout=60)[0]) for process in started]
    assert sorted(attempts) == [1, 2, 3, 4]
    assert {p.name for p in (tmp_path / "demo").iterdir() if p.is_file()} == {"config.yaml", "env.json"}
    assert config.load(Job, tmp_path / "demo" / "config.yaml") == job(tmp_path)


def test_done(tmp_path: Path) -> None:
    cfg = job(tmp_path)
    folder = open_run(cfg.run, cfg, ALONE)
    assert not folder.is_done
    folder.mark_done({"reward": 0.5})
    assert folder.is_done
    assert open_run(cfg.run, cfg, ALONE).summary() == {"reward": 0.5}


def test_unwritable_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cfg = job(tmp_path / "file")
    with pytest.raises(UserError, match=r"the run folder .* cannot be written .*set run\.root"):
        open_run(cfg.run, cfg, ALONE)


def test_atomic_write_leaves_the_old_content_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new\ud800")
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match=r"run\.name"):
        RunConfig(name=name)


def test_bad_seed() -> None:
    with pytest.raises(UserError, match=r"run\.seed"):
        RunConfig(seed=-1)
