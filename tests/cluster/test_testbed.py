"""The testbed behaves as the clusters that the suite is written for: MPI over nodes, signals, requeues."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.cluster.testbed import Cluster

WORLD = """
import json, os
from mpi4py import MPI
world = MPI.COMM_WORLD
nodes = world.gather((world.rank, os.environ["SLURMD_NODENAME"]))
if world.rank == 0:
    print("WORLD " + json.dumps([world.size, nodes]), flush=True)
"""
# Says on which node and for the how-manieth time it runs; USR2 ends it after a word.
STOPPABLE = """#!/bin/bash
trap 'echo "saved $SLURM_RESTART_COUNT"; exit 0' USR2
echo "started ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME"
for i in {1..600}; do sleep 0.1; done
"""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """`program(source) -> Path` writes an executable file (a Python one runs under `python -m mpi4py`)."""
    folder = tmp_path_factory.mktemp("programs")

    def write(source: str) -> Path:
        path = folder / f"program_{len(list(folder.iterdir()))}"
        path.write_text(source, encoding="utf-8")
        path.chmod(0o755)
        return path

    return write


def world_of(text: str) -> tuple[int, list[list[object]]]:
    (line,) = [line for line in text.splitlines() if line.startswith("WORLD ")]
    size, nodes = json.loads(line.removeprefix("WORLD "))
    return size, nodes


def test_step_spans_nodes_and_counts_gpus(slurm: Cluster) -> None:
    """Two tasks on each of three nodes, each sees the GPUs that the job has asked for."""
    command = 'echo "$SLURM_PROCID $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'
    done = slurm.run("srun", "-N3", "--ntasks-per-node=2", "--gpus-per-node=2", "bash", "-c", command)
    assert sorted(done.stdout.splitlines()) == [f"{rank} node{rank // 2 + 1} 0,1" for rank in range(6)]


def test_mpi_world_over_three_nodes(slurm: Cluster, program) -> None:  # type: ignore[no-untyped-def]
    """Ranks of one COMM_WORLD, placed in blocks."""
    python = [sys.executable, "-m", "mpi4py", str(program(WORLD))]
    done = slurm.run("srun", "--mpi=pmi2", "-N3", "--ntasks-per-node=2", *python)
    assert world_of(done.stdout) == (6, [[rank, f"node{rank // 2 + 1}"] for rank in range(6)])


def test_heterogeneous_job_is_one_world(slurm: Cluster, program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Two nodes of two ranks and one of one are one COMM_WORLD of five, the first component first."""
    script = f"""#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --gpus-per-node=2 --output={tmp_path}/log
#SBATCH hetjob
#SBATCH --nodes=1 --ntasks-per-node=1 --gpus-per-node=1
srun --mpi=pmi2 --het-group=0,1 {sys.executable} -m mpi4py {program(WORLD)}
"""
    job = slurm.sbatch(script)
    slurm.wait(job, "COMPLETED")
    size, nodes = world_of(slurm.output(job))
    assert size == 5
    first, second, third = (nodes[i][1] for i in (0, 2, 4))
    assert nodes == [[0, first], [1, first], [2, second], [3, second], [4, third]]
    assert len({first, second, third}) == 3


def test_preempted_job_gets_usr2_and_runs_again(slurm: Cluster, program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The urgent partition takes the nodes; the job's tasks have their grace, and it is requeued."""
    step = program(STOPPABLE)
    job = slurm.sbatch(
        f"#!/bin/bash\nsrun {step}\nscontrol requeue $SLURM_JOB_ID\nsleep 60\n",
        *["--nodes=4", "--exclusive", "--signal=USR2@30", "--open-mode=append", f"--output={tmp_path}/log"],
    )
    slurm.wait_output(job, "started 0", count=4)
    urgent = slurm.sbatch("#!/bin/bash\nsleep 1\n", "--partition=urgent", "--exclusive", f"--output={tmp_path}/urgent")
    slurm.wait(urgent, "COMPLETED")
    slurm.wait_restart(job)
    output = slurm.wait_output(job, "started 1", count=4)
    assert output.count("saved") == output.count("saved \n") == output.count("started 0") == 4


def test_lost_node_requeues(slurm: Cluster, program, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A job of two nodes loses one and starts again on others."""
    step = program(STOPPABLE)
    job = slurm.sbatch(
        f"#!/bin/bash\nsrun {step}\n", "--nodes=2", "--requeue", "--open-mode=append", f"--output={tmp_path}/log"
    )
    slurm.wait_tasks(job, 2)
    lost = slurm.nodes_of(job)[0]
    slurm.down(lost)
    slurm.wait_restart(job)
    slurm.wait_tasks(job, 2)
    assert slurm.job(job)["Restarts"] == "1"
    assert lost not in slurm.nodes_of(job)
    for node in slurm.nodes_of(job):
        slurm.wait_output(job, f"started 1 on {node}\n", timeout_s=30)


def test_array_task_is_requeued_by_its_own_id(slurm: Cluster, tmp_path: Path) -> None:
    """`scontrol requeue 12_2` runs the second task again and no other."""
    script = f"""#!/bin/bash
#SBATCH --array=1-3 --open-mode=append --output={tmp_path}/%a
echo "run ${{SLURM_RESTART_COUNT:-0}}"
if [[ $SLURM_ARRAY_TASK_ID = 2 && -z $SLURM_RESTART_COUNT ]]; then
    scontrol requeue ${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
    sleep 60
fi
"""
    job = slurm.sbatch(script)
    slurm.wait(job, "COMPLETED")
    assert {path.name: re.findall("^run .*", path.read_text(), re.M) for path in tmp_path.iterdir()} == {
        "1": ["run 0"],
        "2": ["run 0", "run 1"],
        "3": ["run 0"],
    }


def test_tasks_are_found_by_rank(slurm: Cluster, tmp_path: Path) -> None:
    """The process that is killed is the one of that rank, and `srun --kill-on-bad-exit` ends the others."""
    script = f"""#!/bin/bash
srun --kill-on-bad-exit=1 bash -c 'echo $$ > $0/$SLURM_PROCID; sleep 60' {tmp_path}
"""
    job = slurm.sbatch(script, "--nodes=3", "--ntasks-per-node=1", f"--output={tmp_path}/log")
    tasks = slurm.wait_tasks(job, 3)
    os.kill(tasks[1], signal.SIGKILL)
    assert slurm.wait(job)["JobState"] == "FAILED"
    assert {rank: int((tmp_path / str(rank)).read_text()) for rank in tasks} == tasks
