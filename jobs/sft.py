"""The SFT job: `python -m jobs.sft CONFIG key=value ...`, or `mpirun -n 2 python -m mpi4py -m jobs.sft ...`.

All ranks train. The same command run again resumes; a finished run says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from promptist.cluster import preemption
from promptist.cluster.roles import join_world
from promptist.cluster.run_folder import open_run
from promptist.config import load
from promptist.errors import EXIT_STOPPED, run_main
from promptist.sft.config import SFTJob


def main(argv: list[str]) -> int:
    """Run or resume the job of a config file; 0 when finished, `EXIT_STOPPED` when stopped by a signal after saving."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.sft",
        description="Fine-tune a language model on (plain, engineered) prompt pairs.",
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. run.seed=1")
    arguments = parser.parse_args(argv)
    stop = preemption.install()
    job = load(SFTJob, arguments.config, arguments.overrides)
    world = join_world()
    job.micro_batches(world.size)
    if not (Path(job.run.root) / job.run.name / "config.yaml").exists():
        from promptist.sft.trainer import check_inputs

        check_inputs(job)
    world.barrier()  # every rank has looked before the first one makes the folder
    run = open_run(job.run, job, world)
    if world.share_all(run.is_done):
        if world.leads:
            print(f"{run.path} is finished: {run.summary()}", flush=True)
        return 0
    # DeepSpeed and transformers are slow to import and not needed to say that a run is finished.
    from promptist.sft.trainer import train

    finished = train(job, world, run, stop)
    world.barrier_all()
    return 0 if finished else EXIT_STOPPED


if __name__ == "__main__":
    sys.exit(run_main(main))
