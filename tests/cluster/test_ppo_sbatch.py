"""`sbatch slurm/ppo.sbatch` on a real scheduler: preempted and killed, it ends where an undisturbed `mpirun` ends."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.cluster.testbed import Cluster
from tests.conftest import Mpirun
from tests.helpers_miniature import attempts, make_miniature_ppo, steps, wait_for
from tests.helpers_ppo import deterministic

pytestmark = pytest.mark.distributed

TIMEOUT_S = 400
"""Ten times what the longest takes alone: machines are shared."""

THREE_NODES = (
    "--nodes=3", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--signal=USR2@60", "--time=30",
)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature_ppo(tmp_path_factory.mktemp("sbatch"))


@pytest.fixture(scope="module")
def calm(config: Path, mpirun: Mpirun) -> Path:
    """The undisturbed run: two ranks train and one paints, under mpirun."""
    roles = ["roles.reward_nodes=null", "roles.reward_per_node=1"]
    mpirun(3, "jobs.ppo", [config, "run.name=calm", *roles], timeout_s=TIMEOUT_S).ok()
    return config.parent / "runs" / "calm"


def weights(run: Path) -> str:
    return hashlib.sha256((run / "export" / "model.safetensors").read_bytes()).hexdigest()


def test_preempted_and_killed_it_ends_with_the_same_weights(slurm: Cluster, config: Path, calm: Path) -> None:
    run = config.parent / "runs" / "disturbed"
    log = f"--output={config.parent}/disturbed.out"
    job = slurm.sbatch("slurm/ppo.sbatch", *THREE_NODES, log, config, "run.name=disturbed")
    wait_for(lambda: 1 in steps(run), TIMEOUT_S, lambda: slurm.describe(job))

    # Preemption: every rank is told, all save, the job goes back to the queue.
    slurm.sbatch("#!/bin/bash\nsleep 1", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null")
    wait_for(lambda: len(attempts(run)) > 1, TIMEOUT_S, lambda: slurm.describe(job))
    first = attempts(run)[0]
    assert (first["outcome"], first["requeued"]) == ("stopped", True)
    assert first["step"] >= 1
    assert first["step"] == max(steps(run))

    # A training rank dies between checkpoints: the step ends at once, the job goes back to the queue.
    wait_for(lambda: max(steps(run)) >= first["step"] + 1, TIMEOUT_S, lambda: slurm.describe(job))
    os.kill(slurm.wait_tasks(job, 3)[1], signal.SIGKILL)
    slurm.wait(job, "COMPLETED", TIMEOUT_S)
    outcomes = [(attempt["outcome"], attempt["requeued"]) for attempt in attempts(run)]
    assert outcomes == [("stopped", True), ("crashed", True), ("done", False)]
    assert weights(run) == weights(calm)
    assert deterministic(run) == deterministic(calm)


def test_heterogeneous_job_ends_with_the_same_weights(slurm: Cluster, config: Path, calm: Path, tmp_path: Path) -> None:
    """Two components, one MPI world: the training nodes and the node that paints."""
    run = config.parent / "runs" / "het"
    # Each component has options of its own: as a user edits them at the top of the script.
    script = Path("slurm/ppo-het.sbatch").read_text(encoding="utf-8")
    for old, new in (
        ("--nodes=4", "--nodes=1"),
        ("--ntasks-per-node=8", "--ntasks-per-node=1"), ("--ntasks-per-node=4", "--ntasks-per-node=1"),
        ("--gpus-per-node=8", "--gpus-per-node=0"), ("--gpus-per-node=4", "--gpus-per-node=0"),
        ("--cpus-per-task=8", "--cpus-per-task=1"), ("--time=24:00:00", "--time=30"), ("USR2@600", "USR2@60"),
        ("--output=%x-%j.out", f"--output={tmp_path}/het.out"),
    ):  # fmt: skip
        assert old in script
        script = script.replace(old, new)
    edited = tmp_path / "ppo-het.sbatch"
    edited.write_text(script, encoding="utf-8")
    job = slurm.sbatch(edited, config, "run.name=het")
    slurm.wait(job, "COMPLETED", TIMEOUT_S)
    assert weights(run) == weights(calm)
    assert deterministic(run) == deterministic(calm)


def test_another_number_of_nodes_goes_on_from_a_converted_checkpoint(
    slurm: Cluster, config: Path, calm: Path, tmp_path: Path
) -> None:
    """The undisturbed run, cut back to its last but one checkpoint, goes on with one training rank instead of two."""
    run = config.parent / "runs" / "fewer"
    shutil.copytree(calm, run, ignore=shutil.ignore_patterns("done.json", "step_000006", "export*"))
    text = (run / "config.yaml").read_text(encoding="utf-8").replace("name: calm", "name: fewer")
    (run / "config.yaml").write_text(text, encoding="utf-8")
    job = slurm.sbatch(
        "slurm/ppo.sbatch", "--nodes=2", *THREE_NODES[1:], f"--output={tmp_path}/fewer.out", config, "run.name=fewer"
    )
    slurm.wait(job, "COMPLETED", TIMEOUT_S)
    assert "step_000004 was written by 2 training ranks, 1 go on: converting" in slurm.output(job)
    [attempt] = attempts(run)
    assert (attempt["from_step"], attempt["outcome"], steps(run)) == (4, "done", list(range(7)))
    # On the same rollouts losses agree to 1e-5 (tests/distributed/test_elastic.py); here the policy decodes its own.
    fewer, whole = deterministic(run)[5], deterministic(calm)[5]
    assert fewer["score"] == pytest.approx(whole["score"], abs=1e-3)


def test_bad_input_is_not_queued_again(slurm: Cluster, config: Path, tmp_path: Path) -> None:
    """Also what only a rank finds out: srun says 143 or the like, the run's own word is 64."""
    log = f"--output={tmp_path}/bad.out"
    job = slurm.sbatch("slurm/ppo.sbatch", *THREE_NODES, log, config, "run.name=bad", "ppo.batch=7")
    assert slurm.wait(job, "FAILED", TIMEOUT_S)["ExitCode"] == "64:0"
    assert slurm.output(job).count("error:") == 1
    assert "ppo.batch = 7 does not divide by 2 training ranks" in slurm.output(job)
    job = slurm.sbatch("slurm/ppo.sbatch", *THREE_NODES, log, config, "run.name=bad", "reward.aesthetic.path=none")
    ended = slurm.wait(job, "FAILED", TIMEOUT_S)
    assert (ended["ExitCode"], ended["Restarts"]) == ("64:0", "0")
    [record] = [a for a in attempts(config.parent / "runs" / "bad") if a["job"] == job]
    assert (record["outcome"], record["requeued"]) == ("bad input", False)
    assert "reward.aesthetic.path = 'none' does not exist" in record["sentence"]
