"""The PPO job: `mpirun -n 3 python -m mpi4py -m jobs.ppo CONFIG key=value ...`, or one process that plays
both roles.

Training ranks run `promptist/rl/trainer.py`; reward ranks paint and score until the training ranks are done.
The same command run again resumes; a finished run says so.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from promptist.cluster import preemption
from promptist.cluster.launch import init_training, share_cores
from promptist.cluster.roles import World, join_world
from promptist.cluster.run_folder import RunFolder, open_run
from promptist.config import load
from promptist.errors import EXIT_STOPPED, run_main
from promptist.rl.config import MAY_CHANGE_ON_RESUME, PPOJob

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Run or resume the job of a config file; 0 when finished, `EXIT_STOPPED` when stopped by a signal after saving."""
    parser = argparse.ArgumentParser(prog="python -m jobs.ppo", description="Train a prompt optimiser with PPO.")
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. run.seed=1")
    arguments = parser.parse_args(argv)
    # On reward ranks, too: a scheduler signals every process, and they serve until the training ranks have saved.
    stop = preemption.install()
    job = load(PPOJob, arguments.config, arguments.overrides)
    world = join_world(job.roles)
    job.per_rank(len(world.train_ranks))
    if world.leads and not (Path(job.run.root) / job.run.name / "config.yaml").exists():
        from promptist.rl.inputs import check_inputs

        check_inputs(job)
    run = open_run(job.run, job, world, MAY_CHANGE_ON_RESUME)
    if world.share_all(run.is_done):
        if world.leads:
            print(f"{run.path} is finished: {run.summary()}", flush=True)
        return 0
    finished = False
    if world.trains:
        finished = train(job, world, run, stop)
    else:
        serve_rewards(job, world, run)
    # Whoever is early waits here: MPI's own wait, at the end of the process, would burn its core.
    world.barrier_all()
    return 0 if world.share_all(finished) else EXIT_STOPPED


def train(job: PPOJob, world: World, run: RunFolder, stop: preemption.Preemption) -> bool:
    """A training rank; one that is alone has the reward model in its own process. True if the run is finished."""
    device = init_training(world)
    # DeepSpeed looks for its accelerator, which init_training has chosen, when it is first imported.
    from promptist.rl import trainer

    return trainer.train(job, world, run, stop, device)


def serve_rewards(job: PPOJob, world: World, run: RunFolder) -> None:
    """A reward rank: paint and score until every training rank has said stop."""
    from promptist.reward.model import RewardModel
    from promptist.reward.service import on_own_device, serve

    share_cores(world)
    serve(world, RewardModel(on_own_device(job.reward, world), run.path))


if __name__ == "__main__":
    sys.exit(run_main(main))
