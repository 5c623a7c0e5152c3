"""Before `srun`: `python -m promptist.cluster.prepare sft|ppo|evaluate CONFIG key=value ...` looks at the config, finds
and checks the newest checkpoint, converts it if the number of training ranks has changed, and records the attempt.

Conversion happens here, in a process of its own, since it forks, which a process that uses MPI must not. Prints on
stdout the path that the batch script exports as `PROMPTIST_ENDING`, and everything else on stderr. By hand, outside of
a job, `--train-ranks N` says for how many ranks to convert.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

from promptist import config as configs
from promptist.cluster import attempts, checkpoint, queue, slurm
from promptist.cluster.roles import assign
from promptist.errors import ENDING, UserError, run_main

JOBS = ("sft", "ppo", "evaluate")


def main(argv: list[str]) -> int:
    """Prepare one attempt; 0 when the job may start."""
    parser = argparse.ArgumentParser(prog="python -m promptist.cluster.prepare", description=__doc__)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--train-ranks", type=int, metavar="N", help="outside of a job: ranks that will train")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

    job = configs.load(_job_class(arguments.job), arguments.config, arguments.overrides)
    run = Path(job.run.root) / job.run.name
    key = slurm.job_key()
    if key is not None:
        if arguments.job != "evaluate":  # its shards share a folder
            check_alone(run, key)
        ending = attempts.begin(run, key, slurm.restart_count(), attempts.progress(run))
        # From here on this process's own end is recorded, too, and `finish` decides about it.
        os.environ[ENDING] = str(ending)
        print(ending, flush=True)
    if arguments.job != "evaluate" and not (run / "done.json").exists():
        _prepare_checkpoint(job, run, arguments.train_ranks)
    return 0


def check_alone(run: Path, key: str) -> None:
    """UserError where another job works in the run folder: each would delete what the other is writing."""
    others = [a.job for a in attempts.read(run) if a.outcome is None and a.job != key]
    for other, entry in queue.states(others).items() if others else ():
        if entry.state in ("RUNNING", "COMPLETING", "SUSPENDED"):
            raise UserError(
                f"job {other} works in {run} ({entry.state}): wait for its end, `scancel {other}`, or give this run "
                "another run.name"
            )


def training_ranks(job: Any, nodes: list[int]) -> int:
    """How many of the ranks on `nodes` (node of each rank) will train; UserError as the job itself would raise."""
    if not hasattr(job, "ppo"):
        job.micro_batches(len(nodes))
        return len(nodes)
    count = sum(role != "reward" for role in assign(nodes, job.roles))
    job.per_rank(count)
    return count


def _prepare_checkpoint(job: Any, run: Path, ranks: int | None) -> None:
    nodes = slurm.nodes_of_ranks()
    if ranks is None:
        if nodes is None:
            raise UserError("outside of a SLURM job the number of training ranks is unknown: give --train-ranks N")
        ranks = training_ranks(job, nodes)
    found = checkpoint.find_to_resume(run / "checkpoints")
    if found is None:
        print(f"{run}: no checkpoint yet, the run starts from its beginning", file=sys.stderr)
        return
    written_by = checkpoint.world_size(found)
    print(f"{run}: goes on from {found.name}", file=sys.stderr)
    if written_by == ranks:
        return
    from promptist.models import elastic

    if elastic.universal_of(found) is None:
        print(f"{found.name} was written by {written_by} training ranks, {ranks} go on: converting", file=sys.stderr)
        elastic.convert(found)


def _job_class(name: str) -> type[Any]:
    if name == "sft":
        from promptist.sft.config import SFTJob

        return SFTJob
    if name == "ppo":
        from promptist.rl.config import PPOJob

        return PPOJob
    from jobs.evaluate import EvalJob

    return EvalJob


if __name__ == "__main__":
    sys.exit(run_main(main))
