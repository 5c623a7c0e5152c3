"""Attempts of a run under a scheduler: who is queued again, and what the records say."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from promptist.cluster import attempts, checkpoint, finish, prepare, queue, slurm
from promptist.errors import ENDING, UserError, record_ending, run_main


def checkpoint_of(run: Path, step: int) -> None:
    checkpoint.save(run / "checkpoints", step, lambda folder: (folder / "weights").write_bytes(b"x"))  # type: ignore[func-returns-value]


def attempt(
    run: Path, restart: int, code: int, told: dict[str, object] | None = None, job: str = "12_3"
) -> attempts.Attempt:
    """One start and end; `told` is what a rank wrote before it ended."""
    ending = attempts.begin(run, job, restart, attempts.progress(run))
    assert not ending.exists()
    if told is not None:
        ending.write_text(json.dumps(told))
    return attempts.end(ending, code)


def test_done_and_bad_input_never_go_on(tmp_path: Path) -> None:
    checkpoint_of(tmp_path, 4)
    done = attempt(tmp_path, 0, 0)
    assert (done.outcome, done.requeued, done.from_step, done.step) == ("done", False, 4, 4)
    # srun reports the signal with which the abort ended the other ranks.
    bad = attempt(tmp_path, 1, 143, {"code": 64, "sentence": "the file x does not exist"})
    assert (bad.outcome, bad.exit_code, bad.requeued) == ("bad input", 64, False)
    assert bad.sentence == "the file x does not exist"


def test_code_arrives_from_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No room for a sentence, but for an empty file: bad input must not be queued again."""
    ending = attempts.begin(tmp_path, "7", 0, None)
    monkeypatch.setenv(ENDING, str(ending))

    def no_room(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(json, "dump", no_room)
        record_ending(64, "the disk is full")
    ended = attempts.end(ending, 143)
    assert (ended.outcome, ended.requeued) == ("bad input", False)


def test_stop_goes_on_unless_nothing_ever_comes_of_it(tmp_path: Path) -> None:
    """A time limit just above the signal's lead would stop the run at once, for ever."""
    stop = {"code": 75, "sentence": ""}
    requeued = [attempt(tmp_path, restart, 137, stop).requeued for restart in range(attempts.MAX_STOPS)]
    assert requeued == [True] * (attempts.MAX_STOPS - 1) + [False]
    ending = attempts.begin(tmp_path, "12_3", 99, attempts.progress(tmp_path))
    ending.write_text(json.dumps(stop))
    checkpoint_of(tmp_path, 1)
    assert attempts.end(ending, 75).requeued
    assert attempt(tmp_path, 100, 75, stop).requeued


def test_crash_goes_on_while_checkpoints_advance(tmp_path: Path) -> None:
    """Three crashes in a row without a new checkpoint are the end; an advance or a stop starts the count again."""
    assert [attempt(tmp_path, i, 137).requeued for i in range(2)] == [True, True]
    ending = attempts.begin(tmp_path, "12_3", 2, attempts.progress(tmp_path))
    checkpoint_of(tmp_path, 1)
    assert attempts.end(ending, 137).requeued
    assert [attempt(tmp_path, i, 1).requeued for i in (3, 4)] == [True, False]
    assert attempt(tmp_path, 5, 75, {"code": 75, "sentence": ""}).requeued
    assert [attempt(tmp_path, i, 1).requeued for i in (6, 7, 8)] == [True, True, False]
    assert [a.restart for a in attempts.read(tmp_path)] == list(range(9))


def test_other_tasks_and_lost_nodes_do_not_count(tmp_path: Path) -> None:
    assert [attempt(tmp_path, i, 1, job="12_4").requeued for i in range(2)] == [True, True]
    assert attempt(tmp_path, 0, 1).requeued
    attempts.begin(tmp_path, "12_3", 1, None)  # its node died: SLURM itself starts the job again
    assert attempt(tmp_path, 2, 1).requeued
    assert not attempt(tmp_path, 3, 1).requeued


def test_shard_that_crashes_ends_though_others_advance(tmp_path: Path) -> None:
    finished = tmp_path / "finished"
    finished.mkdir()
    requeued = []
    for restart in range(3):
        ending = attempts.begin(tmp_path, "12_3", restart, attempts.progress(tmp_path))
        (finished / f"attempt_{restart}.jsonl").write_bytes(b"{}\n")  # another shard's work
        requeued.append(attempts.end(ending, 1).requeued)
    assert requeued == [True, True, False]


def test_progress_of_an_evaluation_is_its_finished_work(tmp_path: Path) -> None:
    assert attempts.progress(tmp_path) is None
    (tmp_path / "finished").mkdir()
    (tmp_path / "finished" / "rank_00000.jsonl").write_bytes(b"{}\n{}\n{half")
    assert attempts.progress(tmp_path) == 2


def test_finish_requeues_by_the_array_safe_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(slurm, "requeue", asked.append)
    ending = attempts.begin(tmp_path, "12_3", 0, None)
    ending.write_text('{"code": 75, "sentence": ""}')
    assert run_main(finish.main, [str(ending), "137"]) == 75
    assert asked == ["12_3"]
    ending = attempts.begin(tmp_path, "12_3", 1, None)
    assert run_main(finish.main, [str(ending), "0"]) == 0
    assert asked == ["12_3"]


def test_refused_requeue_keeps_the_exit_code_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """scontrol is asked again while the controller does not answer; then the record says that nothing follows."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho down >&2\nexit 1\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    pauses: list[float] = []
    monkeypatch.setattr(slurm.time, "sleep", pauses.append)
    ending = attempts.begin(tmp_path, "7", 0, None)
    ending.write_text('{"code": 75, "sentence": ""}')
    assert run_main(finish.main, [str(ending), "75"]) == 75
    assert len((tmp_path / "asked").read_text().splitlines()) == len(pauses) + 1
    assert sum(pauses) > 100
    assert "SLURM does not requeue job 7 (down)" in capsys.readouterr().err
    assert not attempts.read(tmp_path)[0].requeued


def test_two_jobs_in_one_run_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"5": "RUNNING"}

    def states(jobs: list[str]) -> dict[str, SimpleNamespace]:
        return {job: SimpleNamespace(state=state[job]) for job in jobs if job in state}

    monkeypatch.setattr(queue, "states", states)
    attempts.begin(tmp_path, "5", 0, None)
    prepare.check_alone(tmp_path, "5")  # itself, started again
    with pytest.raises(UserError, match="job 5 works in"):
        prepare.check_alone(tmp_path, "6")
    state["5"] = "FAILED"
    prepare.check_alone(tmp_path, "6")


def test_finish_refuses_what_is_no_attempt(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no record of an attempt"):
        finish.main([str(tmp_path / "attempts" / "1.0.ending"), "0"])


def test_job_key_names_one_task_of_an_array() -> None:
    array = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert slurm.job_key(array) == "12_3"
    assert slurm.job_key({"SLURM_JOB_ID": "17"}) == "17"
    assert slurm.job_key({}) is None


def test_nodes_of_ranks() -> None:
    assert slurm.nodes_of_ranks({}) is None
    plain = {"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert slurm.nodes_of_ranks(plain) == [0, 0, 1, 1, 2]
    het = {
        "SLURM_JOB_ID": "1", "SLURM_HET_SIZE": "2", "SLURM_TASKS_PER_NODE": "2",
        "SLURM_TASKS_PER_NODE_HET_GROUP_0": "2", "SLURM_TASKS_PER_NODE_HET_GROUP_1": "1(x2)",
    }  # fmt: skip
    assert slurm.nodes_of_ranks(het) == [0, 0, 1, 2]
    with pytest.raises(UserError, match="SLURM_TASKS_PER_NODE"):
        slurm.nodes_of_ranks({"SLURM_JOB_ID": "1", "SLURM_TASKS_PER_NODE": "many"})
