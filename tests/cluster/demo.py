"""`make cluster-demo`: the miniature PPO as a user of a cluster runs it, on a SLURM that exists as long as it runs.

Three nodes, one MPI world: two ranks train, one paints. After the first checkpoint an urgent job takes the nodes away:
the ranks are told, save, go back to the queue, and go on when the nodes are free again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

from promptist.cluster import attempts, checkpoint
from promptist.demo import CONFIGS, WORLD
from promptist.errors import UserError, run_main
from tests.cluster.testbed import ENDED, POLL_S, REPOSITORY, Cluster, missing

SFT, PPO = Path("runs/demo-sft"), Path("runs/cluster-demo")
# The nodes share this host's cores: one thread for each rank, and no GPU.
NODES = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=60", "--signal=USR2@60")
ITERATIONS, EVERY = 6, 2
SMALLER = (
    *("roles.reward_per_node=null", "roles.reward_nodes=1", "ppo.batch=24", "ppo.chunk=12", "zero.micro_batch=12"),
    *(f"ppo.iterations={ITERATIONS}", f"ppo.validate_every={ITERATIONS}", "ppo.validation_prompts=8"),
    f"checkpoint.every={EVERY}",
)


def main(argv: list[str]) -> int:
    """Run the demo; the exit code of its PPO job."""
    parser = argparse.ArgumentParser("make cluster-demo", description="The miniature PPO on a throw-away SLURM.")
    parser.add_argument("--folder", type=Path, default=Path("runs/cluster-demo-slurm"), help="of SLURM and the logs")
    folder = parser.parse_args(argv).folder
    os.chdir(REPOSITORY)
    reason = missing()
    if reason:
        raise UserError(f"no SLURM testbed: {reason}")
    if (PPO / "done.json").exists():
        raise UserError(f"{PPO} is finished: move it away to see the demo again")
    if not (WORLD / "prompts/eval.jsonl").exists():
        from promptist.synthetic.world import unpack

        print(f"== the miniature world goes to {WORLD}", flush=True)
        unpack(WORLD)
    with Cluster(folder, nodes=3) as cluster:
        print(f"== SLURM is up: export SLURM_CONF={cluster.conf}")
        print(cluster.run("sinfo").stdout, flush=True)
        if not (SFT / "export").exists():
            job = submit(cluster, 2, "slurm/sft.sbatch", CONFIGS / "sft.yaml", f"run.name={SFT.name}")
            if follow(cluster, job):
                raise UserError(f"SFT has failed: read {cluster.job(job)['StdOut']}, then run the same command again")
        model = f"model.path={SFT / 'export'}"
        job = submit(cluster, 3, "slurm/ppo.sbatch", CONFIGS / "ppo.yaml", f"run.name={PPO.name}", model, *SMALLER)
        code = follow(cluster, job, Preemption(cluster, job))
        for attempt in attempts.read(PPO):
            outcome = attempt.outcome or "ended by SLURM before it could say how"
            requeued = ", back to the queue" if attempt.requeued else ""
            print(f"== start {attempt.restart}: step {attempt.from_step or 0} to {attempt.step}, {outcome}{requeued}")
        print(f"== log: {cluster.job(job)['StdOut']}")
        print(f"== results: {PPO} (metrics.jsonl, rollouts/, export/)", flush=True)
    return code


def submit(cluster: Cluster, nodes: int, script: str, config: Path, *overrides: str) -> str:
    """sbatch as a user types it; the job's id."""
    options = (f"--nodes={nodes}", *NODES, f"--output={cluster.folder}/%x-%j.out")
    print(f"\n== {shlex.join(['sbatch', *options, script, str(config), *overrides])}", flush=True)
    return cluster.sbatch(script, *options, config, *overrides, env={"OMP_NUM_THREADS": "1"})


class Preemption:
    """Submits one urgent job for all nodes as soon as the run has its first checkpoint of this start."""

    def __init__(self, cluster: Cluster, job_id: str) -> None:
        self.cluster, self.job_id, self.submitted = cluster, job_id, False
        self.before = newest_checkpoint()

    def __call__(self) -> None:
        if self.submitted or newest_checkpoint() == self.before:
            return
        self.submitted = True
        urgent = ("--partition=urgent", "--nodes=3", "--exclusive", f"--output={self.cluster.folder}/urgent-%j.out")
        print(f"\n== an urgent job takes the nodes: sbatch {shlex.join(urgent)}", flush=True)
        self.cluster.sbatch("#!/bin/bash\nsleep 3\n", *urgent)


def newest_checkpoint() -> Path | None:
    return checkpoint.find_latest(PPO / "checkpoints", hashes=False)


def follow(cluster: Cluster, job_id: str, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Print the job's log and its states until it has ended; its exit code."""
    printed, state = 0, ""
    while True:
        job = cluster.job(job_id)
        log = Path(job["StdOut"])
        if log.exists():
            with log.open("rb") as file:
                file.seek(printed)
                text = file.read()
            printed += len(text)
            sys.stdout.buffer.write(text)
        if job["JobState"] != state:
            state = job["JobState"]
            print(f"== job {job_id}: {state} {job['NodeList'].replace('(null)', '')}")
        sys.stdout.flush()
        if state in ENDED:
            return int(job["ExitCode"].split(":")[0]) or int(state != "COMPLETED")
        meanwhile()
        time.sleep(POLL_S)


if __name__ == "__main__":
    sys.exit(run_main(main))
