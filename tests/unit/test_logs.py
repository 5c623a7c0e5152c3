"""`promptist logs`: which file, how it is followed, when that ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from promptist import cli
from promptist.cluster import logs
from tests.conftest import REPOSITORY
from tests.helpers_runs import add_attempt, make_run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.02)


def add_log(run: Path, attempt: int, rank: int, text: str) -> Path:
    path = run / f"logs/attempt_{attempt}/{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
    return path


def following(run: Path, code: list[int], *options: str) -> threading.Thread:
    thread = threading.Thread(target=lambda: code.append(cli.main(["logs", str(run), "-f", *options])), daemon=True)
    thread.start()
    return thread


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_newest_attempt_of_the_leader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", "ppo", 20, 12)
    add_log(run, 9, 0, "old\n")
    add_log(run, 10, 0, "painting\n")
    add_log(run, 10, 1, "ppo 1/20 | ü\nhalf a li")
    assert cli.main(["logs", str(run)]) == 0
    assert capsys.readouterr().out == "painting\n"  # nobody said who leads
    ranks = [{"rank": 0, "role": "reward"}, {"rank": 1, "role": "train"}, {"rank": 2, "role": "train"}]
    (run / "logs/attempt_10/env.json").write_text(json.dumps({"ranks": ranks}))
    (run / "logs/attempt_11").mkdir()  # made, but nothing is in it yet
    assert cli.main(["logs", str(run)]) == 0
    assert capsys.readouterr() == ("ppo 1/20 | ü\nhalf a li", "")
    assert cli.main(["logs", str(run), "--rank", "0"]) == 0
    assert cli.main(["logs", str(run), "--attempt", "9", "--rank", "0"]) == 0
    assert capsys.readouterr().out == "painting\nold\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attempt", "7"], "has no attempt 7: it has 1-2, 4"),
        (["--rank", "3"], "attempt 4 of .* has no rank 3: it has 0-1"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, options: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import re

    run = make_run(tmp_path / "run", "ppo", 20, 12)
    for attempt, rank in ((1, 0), (2, 0), (4, 0), (4, 1)):
        add_log(run, attempt, rank, "x\n")
    assert cli.main(["logs", str(run), *options]) == 64
    assert re.search(words, capfd.readouterr().err)


def test_no_run_and_no_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["logs", str(tmp_path)]) == 64
    assert "not a run folder" in capsys.readouterr().err
    assert cli.main(["logs", str(make_run(tmp_path / "run", "ppo", 20, 0))]) == 64
    assert "has not started yet" in capsys.readouterr().err


def test_following_goes_on_to_the_next_attempt_and_ends_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, code, out = make_run(tmp_path / "run", "ppo", 20, 0), [], []  # type: ignore[var-annotated]

    def shown() -> str:
        out.append(capsys.readouterr().out)
        return "".join(out)

    thread = following(run, code)
    add_log(run, 1, 0, "one\ntw")
    until(lambda: shown() == "one\n")
    add_log(run, 1, 0, "o\n")
    until(lambda: shown() == "one\ntwo\n")
    add_log(run, 1, 0, "cut o")  # killed
    add_log(run, 2, 0, "again\n")
    until(lambda: shown().endswith("again\n"))
    add_log(run, 2, 0, "last words")
    (run / "done.json").write_text("{}")
    thread.join(20)
    assert code == [0]
    assert shown() == "one\ntwo\ncut oagain\nlast words"


def test_following_ends_where_a_run_failed_for_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, code = make_run(tmp_path / "run", "ppo", 20, 0), []  # type: ignore[var-annotated]
    add_log(run, 1, 0, "one\n")
    add_attempt(run, "5", 0, outcome="crashed", exit_code=1, ended=5, requeued=True)
    thread = following(run, code)
    time.sleep(0.3)
    assert not code  # queued again
    add_attempt(run, "5", 1, started=1, outcome="bad input", exit_code=64, ended=0, sentence="data.valid is empty")
    thread.join(20)
    assert code == [1]
    assert "bad input (job 5): data.valid is empty" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "ppo", 20, 0)
    add_log(run, 1, 0, "line of a long log\n" * 50_000)
    shell = f"{sys.executable} -m promptist.cli logs {run} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "line of a long log\n", "")
