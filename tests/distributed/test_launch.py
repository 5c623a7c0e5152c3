"""Several ranks: roles, DeepSpeed's world, checkpoints, and one rank's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

JOIN = """
import sys, json, logging
from dataclasses import dataclass, field
from pathlib import Path
from promptist.errors import UserError, run_main

def main(argv):
    from promptist.cluster.roles import RolesConfig, join_world
    {body}

sys.exit(run_main(main))
"""


def script(body: str) -> str:
    return JOIN.replace("{body}", body.strip("\n").replace("\n", "\n    "))


def test_training_ranks_alone_form_the_torch_world(mpirun: Any, tmp_path: Path) -> None:
    """2 training ranks and 1 reward rank: collectives, run folder and a checkpoint of all training ranks."""
    body = """
from promptist.cluster import checkpoint
from promptist.cluster.launch import init_training
from promptist.cluster.run_folder import RunConfig, open_run
@dataclass
class Job:
    run: RunConfig = field(default_factory=RunConfig)
world = join_world(RolesConfig(reward_per_node=1))
cfg = Job(RunConfig("demo", argv[0]))
folder = open_run(cfg.run, cfg, world)
logging.getLogger("promptist").info("rank %d is %s", world.rank, world.role)
facts = {"role": world.role, "attempt": folder.attempt, "torch": "torch" in sys.modules}
if world.trains:
    device = init_training(world, "cpu", timeout_s=60)
    import torch, torch.distributed as dist, deepspeed
    x = torch.tensor([10.0 ** world.group_rank])
    deepspeed.comm.all_reduce(x)
    checkpoint.save(
        folder.checkpoints, 3, lambda path: (path / f"part_{world.group_rank}").write_text("x"),
        rank=world.group_rank, world_size=world.group_size, barrier=world.barrier, rank_state={"r":
        world.rank},
    )
    found = world.share(checkpoint.find_latest(folder.checkpoints) if world.group_rank == 0 else None)
    facts |= {"size": dist.get_world_size(), "rank": dist.get_rank(), "sum": x.item(), "found": found.name}
world.barrier_all()
(folder.path / f"facts_{world.rank}.json").write_text(json.dumps(facts))
"""
    done = mpirun(3, script(body), [tmp_path], timeout_s=300).ok()
    run = tmp_path / "demo"
    facts = [json.loads((run / f"facts_{rank}.json").read_text()) for rank in range(3)]
    shared = {"role": "train", "attempt": 1, "torch": False, "size": 2, "sum": 11.0, "found": "step_000003"}
    assert facts[:2] == [{**shared, "rank": 0}, {**shared, "rank": 1}]
    assert facts[2] == {"role": "reward", "attempt": 1, "torch": False}
    files = {p.name for p in (run / "checkpoints" / "step_000003").iterdir()}
    assert files == {"part_0", "part_1", "rank_00000.json", "rank_00001.json", "state.json", "complete.json"}
    logs = run / "logs" / "attempt_1"
    assert all(f"rank {rank} is" in (logs / f"{rank:05d}.log").read_text() for rank in range(3))
    assert [rank for rank in range(3) if f"rank {rank} is" in done.stderr] == [
        0
    ]  # the console is the leader's
    assert [r["role"] for r in json.loads((run / "env.json").read_text())["ranks"]] == [
        "train",
        "train",
        "reward",
    ]


def test_one_process_is_a_world_too(mpirun: Any) -> None:
    body = """
from promptist.cluster.launch import init_training
world = join_world(RolesConfig(reward_per_node=1))
init_training(world, "cpu", timeout_s=60)
import torch.distributed as dist
print(world.role, dist.get_world_size(), dist.get_backend())
"""
    assert "both 1 gloo" in mpirun(1, script(body), timeout_s=300).ok().stdout


def test_one_ranks_bad_input_ends_all_with_64(mpirun: Any) -> None:
    body = """
world = join_world()
if world.rank == 1:
    raise UserError("the file x does not exist")
world.comm.Barrier()
"""
    done = mpirun(3, script(body), timeout_s=60)
    assert done.returncode == 64
    assert done.stderr.count("error: the file x does not exist") == 1
    assert "Traceback" not in done.stderr


def test_bad_input_of_all_ranks_is_said_once(mpirun: Any) -> None:
    done = mpirun(3, script("join_world(RolesConfig())"), timeout_s=60)
    assert done.returncode == 64
    assert done.stderr.count("error: 3 processes but no reward rank") == 1


def test_one_ranks_exception_ends_all(mpirun: Any) -> None:
    body = """
world = join_world()
if world.rank == 2:
    raise ZeroDivisionError("rank two")
world.comm.Barrier()
"""
    done = mpirun(3, script(body), timeout_s=60)
    assert done.returncode == 1
    assert "ZeroDivisionError: rank two" in done.stderr
