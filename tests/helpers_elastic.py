"""What `tests/distributed/test_elastic.py` starts: jobs, SFT runs and replays of recorded rollouts, one after the other
in one start of Python, each optimiser step written down.

    python -m mpi4py -m tests.helpers_elastic PPO_CONFIG SFT_CONFIG WORD ...

`ppo:NAME:STAGE:END` and `sft:NAME:STAGE:END` are runs under a ZeRO stage that die when they have logged step END (0:
they do not), PPO by SIGKILL of all training ranks, SFT by an exception; `refused:NAME:STAGE` an SFT job that must
leave with code 64. `replay:` see `Replay`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptist.cluster.metrics import MetricLog
from promptist.errors import run_main


@dataclass
class Replay:
    """The updates of iterations `first..last` on recorded rollouts, from the checkpoint folder `saved` on.

    With `again` everything is saved there after two iterations, by this number of ranks, and loaded into new engines.
    `threshold`: weights with fewer elements are kept whole on every rank by ZeRO 3.
    """

    stage: str
    saved: str
    rollouts: str
    first: str
    last: str
    threshold: str
    again: str
    out: str

    def word(self) -> str:
        return ":".join(["replay", *vars(self).values()])


class Steps:
    """[loss, gradient norm, learning rate] of every optimiser step of this process, as it happens."""

    def __init__(self, *modules: Any) -> None:
        self.seen: list[list[float]] = []
        for module in modules:
            module.global_step = self._recorded(module.global_step)

    def _recorded(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any) -> Any:
            result = plain(*args)
            self.seen.append([result.loss, result.grad_norm, result.lr])
            return result

        return step

    def write(self, path: Path, leads: bool) -> None:
        if leads:
            path.write_text(json.dumps(self.seen), encoding="utf-8")
        self.seen.clear()


def main(argv: list[str]) -> int:
    from jobs import ppo as ppo_job
    from promptist.cluster.launch import init_training
    from promptist.cluster.roles import join_world
    from promptist.config import load
    from promptist.rl.config import PPOJob

    ppo, sft, *words = argv
    world = join_world(load(PPOJob, Path(ppo)).roles)
    if world.trains:
        init_training(world)
        from promptist.rl import update
        from promptist.sft import trainer

        steps = Steps(update, trainer)
    for word in words:
        kind, *rest = word.split(":")
        if kind == "ppo":
            name, stage, end = rest
            dies_at(int(end), lambda: os.kill(os.getpid(), signal.SIGKILL))
            assert ppo_job.main([ppo, f"run.name={name}", f"zero.stage={stage}"]) == 0
            if world.trains:
                steps.write(Path(ppo).parent / "runs" / name / "steps.json", world.leads)
        elif kind == "refused":
            from jobs import sft as sft_job

            assert run_main(sft_job.main, [sft, f"run.name={rest[0]}", f"zero.stage={rest[1]}"]) == 64
        elif world.trains and kind == "sft":
            name, stage, end = rest
            dies_at(int(end), power_cut)
            train_sft(sft, name, stage, world)
            steps.write(Path(sft).parent / "runs" / name / "steps.json", world.leads)
        elif world.trains:
            assert kind == "replay"
            asked = Replay(*rest)
            replay(asked, ppo)
            steps.write(Path(asked.out), world.leads)
    world.barrier_all()
    return 0


plain_log = MetricLog.log


def dies_at(end: int, die: Callable[[], None]) -> None:
    def log(self: MetricLog, step: int, metrics: Any) -> None:
        plain_log(self, step, metrics)
        if step == end:
            die()

    # Step 0 is PPO's first validation: nobody dies there.
    MetricLog.log = log if end else plain_log  # type: ignore[method-assign]


class PowerCut(Exception):
    pass


def power_cut() -> None:
    raise PowerCut


def train_sft(config: str, name: str, stage: str, world: Any) -> None:
    """The SFT trainer on the training ranks of a PPO world: a world of its own would be another start."""
    from promptist.cluster import preemption
    from promptist.cluster.run_folder import RunFolder
    from promptist.config import load
    from promptist.sft.config import SFTJob
    from promptist.sft.trainer import train

    job = load(SFTJob, Path(config), [f"run.name={name}", f"zero.stage={stage}"])
    run = RunFolder(Path(job.run.root) / name, 1)
    run.path.mkdir(parents=True, exist_ok=True)
    with suppress(PowerCut):
        assert train(job, world, run, preemption.install())


def replay(asked: Replay, config: str) -> None:
    """Written against the records alone, not with the trainer's way from rollouts to tensors."""
    import torch
    import torch.distributed as dist

    from promptist.cluster import checkpoint
    from promptist.config import load
    from promptist.data.order import shard
    from promptist.data.text import load_tokenizer
    from promptist.models import engine
    from promptist.rl.config import PPOJob
    from promptist.rl.journal import score_of
    from promptist.rl.networks import Networks
    from promptist.rl.records import read_rollouts
    from promptist.rl.rollout import round_up, tensors_of
    from promptist.rl.update import assign_advantages, update

    engine.PERSISTENCE_THRESHOLD = int(asked.threshold)
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), torch.device("cpu")
    job = load(PPOJob, Path(config), [f"zero.stage={asked.stage}"])
    tokenizer, micro = load_tokenizer(job.model.path), job.zero.micro_batch
    first, saved = int(asked.first), Path(asked.saved)
    state = checkpoint.read_state(saved)

    def networks(folder: Path) -> Networks:
        nets = Networks.build(job, tokenizer, device, job.per_rank(ranks) // micro)
        nets.load(folder)
        # The best policy of a run is exported past the engines, from what other ranks may have saved.
        by_engine, by_file = (Path(asked.out).with_suffix(f".{name}") for name in ("engine", "file"))
        nets.export(by_engine)
        if rank == 0:
            nets.export_saved(folder.with_suffix(""), by_file)
            a, b = ((export / "model.safetensors").read_bytes() for export in (by_engine, by_file))
            assert a == b, f"other weights than those of {folder}"
        return nets

    nets = networks(saved)
    for step in range(first, int(asked.last) + 1):
        if asked.again and step == first + 2:
            path = checkpoint.save(
                Path(asked.again),
                step - 1,
                nets.save,
                rank=rank,
                world_size=ranks,
                barrier=dist.barrier,
                state=state,
            )
            assert checkpoint.world_size(path) == ranks
            nets = networks(path)
        everyone = read_rollouts(Path(asked.rollouts) / f"step_{step:06d}.parquet")
        prompt_width = round_up(max(len(r.prompt_ids) for r in everyone))
        width = round_up(max(len(r.response_ids) for r in everyone))
        mine = list(shard(everyone, rank, ranks))
        batch = tensors_of(mine, prompt_width, width, int(tokenizer.eos_token_id), device)
        for name in ("logprobs", "ref_logprobs", "values"):
            for row, rollout in zip(getattr(batch, name), mine, strict=True):
                row[: len(rollout.response_ids)] = torch.tensor(getattr(rollout, name))
        assign_advantages(batch, [score_of(r, job.reward.terms).score for r in mine], job.ppo, job.ppo.kl_coef)
        update(nets, batch, micro, job.ppo, (step - 1) * job.ppo.epochs)


if __name__ == "__main__":
    sys.exit(run_main(main))
