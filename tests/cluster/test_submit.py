"""Jobs submitted from Python to a real scheduler: arrays with a task preempted, a pipeline, a job that is killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import UncompletedJobError

from jobs import submit
from promptist.cluster import attempts, queue
from promptist.cluster.site import ClusterConfig, load_site
from tests.cluster import processes
from tests.cluster.testbed import REPOSITORY, Cluster
from tests.helpers_submit import TinyConfigs, make_tiny_configs

TIMEOUT_S = 400  # of what takes half a minute when the machine is free


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyConfigs:
    return make_tiny_configs(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def site() -> ClusterConfig:
    """The shipped testbed's, but each job has its nodes to itself: one can be preempted without its neighbour."""
    return load_site("configs/cluster/testbed.yaml", ["directives.exclusive=", "ppo.tasks_per_node=2"])


def wait_until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def wait_done(jobs: list[Any], slurm: Cluster) -> None:
    """As `job.wait()`, but not for ever, and until SLURM has seen the end: after the result the attempt is noted."""
    for job in jobs:
        wait_until(job.done, f"{job} does not end: {slurm.describe(job.job_id)}\n{job.stdout()}\n{job.stderr()}")
        slurm.wait(job.job_id, timeout_s=TIMEOUT_S)


def preempt(slurm: Cluster, job: Any) -> None:
    """A job of the urgent partition takes the node, for as long as SLURM needs to see it."""
    node = queue.states([job.job_id])[job.job_id].nodes
    script = "#!/bin/sh\nsleep 1\n"
    options = ("--partition=urgent", f"--nodelist={node}", "--exclusive", "--output=/dev/null")
    slurm.wait(slurm.sbatch(script, *options), timeout_s=TIMEOUT_S)


def check_restarted(run: Path, job: Any) -> None:
    """Preempted once (told to stop, or on a slow machine killed before it could), then run to the end."""
    own = [attempt for attempt in attempts.read(run) if attempt.job == job.job_id]
    # Once in some hundreds of starts MPI itself does not come up; such a start says nothing and is queued again.
    first, second = [a for a in own if not (a.outcome == "crashed" and a.sentence is None)]
    assert first.outcome in ("stopped", None)
    assert second.outcome == "done"


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_array_of_seeds(kind: str, slurm_environ: Cluster, tiny: TinyConfigs, site: ClusterConfig) -> None:
    more = {"sft": ["sft.steps=30"], "ppo": ["ppo.iterations=6", "checkpoint.every=1"]}[kind]
    start = {"sft": submit.sft, "ppo": submit.ppo}[kind]
    jobs = start(tiny.sft if kind == "sft" else tiny.ppo, more, site=site, sweep=["run.seed=1,2"])
    runs = [tiny.runs / f"tiny-{kind}-seed{seed}" for seed in (1, 2)]
    # In its training loop: the first checkpoint stands, the last does not.
    wait_until(lambda: any((runs[0] / "checkpoints").glob("step_*[0-9]")), f"{runs[0]} makes no checkpoint")
    preempt(slurm_environ, jobs[0])
    wait_done(jobs, slurm_environ)
    results = [job.results() for job in jobs]
    assert results == [[0] * jobs[0].num_tasks] * 2
    assert all((run / "done.json").exists() for run in runs)
    check_restarted(runs[0], jobs[0])
    assert [attempt.outcome for attempt in attempts.read(runs[1])] == ["done"]


def test_pipeline(slurm_environ: Cluster, tiny: TinyConfigs, site: ClusterConfig) -> None:
    """Each stage after the one before it, on what that one made; a shard of the evaluation is preempted."""
    overrides = ["ppo:ppo.iterations=1", "sft:sft.steps=2", "ppo:roles.reward_per_node=null", "eval:images=150"]
    one_rank = load_site("configs/cluster/testbed.yaml", ["directives.exclusive=", "ppo.tasks_per_node=1"])
    stages = submit.pipeline(tiny.sft, tiny.ppo, tiny.eval, overrides, site=one_rank, shards=2)
    assert list(stages) == ["sft", "ppo", "eval", "reduce"]
    for before, after in itertools.pairwise(stages.values()):
        parent = before[0].job_id.split("_")[0]
        entries = [slurm_environ.job(job.job_id) for job in after]
        assert {(entry["JobState"], entry["Dependency"].split("(")[0].rstrip("_*")) for entry in entries} == {
            ("PENDING", f"afterok:{parent}")
        }
    run = tiny.runs / "tiny-eval"
    # Both shards have finished a piece of their work, of which there are hundreds.
    wait_until(lambda: sum(bool(f.stat().st_size) for f in run.glob("finished/*.jsonl")) == 2, "no shard gets on")
    preempt(slurm_environ, stages["eval"][0])
    wait_done([job for jobs in stages.values() for job in jobs], slurm_environ)
    assert {kind: [job.result() for job in jobs] for kind, jobs in stages.items()} == {
        "sft": [0], "ppo": [0], "eval": [0, 0], "reduce": [0],
    }  # fmt: skip
    assert (run / "report.html").exists() and (run / "measurements.parquet").exists()
    rows = json.loads((run / "evaluation.json").read_text())["methods"]
    assert {row["name"]: row["path"] for row in rows if row["path"]} == {
        "sft": str(tiny.runs / "tiny-sft"), "ppo": str(tiny.runs / "tiny-ppo"),
    }  # fmt: skip
    assert f"{tiny.runs}/tiny-sft/export" in (tiny.runs / "tiny-ppo" / "config.yaml").read_text()
    assert attempts.read(run)[-1].job == stages["reduce"][0].job_id
    check_restarted(run, stages["eval"][0])


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_time_limit(kind: str, slurm_environ: Cluster, tiny: TinyConfigs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits after its second step until SLURM says that its time is nearly over, then goes on by itself."""
    inject = Path(__file__).parent / "inject"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(inject), str(REPOSITORY)]))
    monkeypatch.setenv("PROMPTIST_DEATH", "pause:2")
    site = load_site("configs/cluster/testbed.yaml", [f"{kind}.time=0:02:00", "ppo.tasks_per_node=2"])
    more = {"sft": ["sft.steps=4"], "ppo": ["ppo.iterations=3", "ppo.validate_every=3"]}[kind]
    start = {"sft": submit.sft, "ppo": submit.ppo}[kind]
    (job,) = start(tiny.sft if kind == "sft" else tiny.ppo, [f"run.name=limit-{kind}", *more], site=site)
    slurm_environ.wait(job.job_id, "RUNNING")
    assert slurm_environ.job(job.job_id)["TimeLimit"] == "00:02:00"
    wait_done([job], slurm_environ)
    run = tiny.runs / f"limit-{kind}"
    own = [a for a in attempts.read(run) if not (a.outcome == "crashed" and a.sentence is None)]
    assert [(a.job, a.outcome, a.from_step, a.step) for a in own] == [
        (job.job_id, "stopped", None, 2), (job.job_id, "done", 2, own[1].step),
    ]  # fmt: skip
    assert (run / "reached").exists() and (run / "done.json").exists()
    assert job.results() == [0] * job.num_tasks


def test_killed_job_is_seen_and_relaunched_by_hand(
    slurm_environ: Cluster, tiny: TinyConfigs, site: ClusterConfig
) -> None:
    """No process of the job lives to say anything: without accounting submitit alone would wait for ever."""
    (job,) = submit.sft(tiny.sft, ["run.name=killed", "sft.steps=2"], site=site)
    with pytest.raises(submit.UserError, match=rf"is in the queue already, as job {job.job_id}"):
        submit.sft(tiny.sft, ["run.name=killed", "sft.steps=2"], site=site)
    slurm_environ.wait(job.job_id, "RUNNING")
    wait_until(lambda: any((tiny.runs / "killed" / "attempts").glob("*.json")), "the job does not begin")
    for pid in processes.every():  # by their environment: not what SLURM itself runs for the job
        if processes.environ(pid).get("SLURM_JOB_ID") == job.job_id:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(job.done, f"{job} is not seen to have ended")
    assert job.state == "FAILED"
    with pytest.raises(UncompletedJobError):
        job.result()
    again = slurm_environ.sbatch(tiny.runs / "killed" / "submission" / "submit.sh", cwd=Path("/"))
    slurm_environ.wait(again, "COMPLETED", timeout_s=TIMEOUT_S)
    assert (tiny.runs / "killed" / "done.json").exists()
    assert re.search(r"job \d+, start 0: done \(step 2, exit code 0\)", slurm_environ.output(again))
