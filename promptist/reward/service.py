"""The reward service of a job: `serve` on reward ranks, `connect` on training ranks.

if world.role == "reward":
    serve(world, RewardModel(config, run_folder))
else:
    client = connect(world, config, run_folder)   # LocalRewards where one process plays both roles
    ...
    client.close()
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from promptist.cluster.launch import pick_device
from promptist.reward.cache import PlainCache
from promptist.reward.client import (
    CachedRewards,
    LocalRewards,
    Measurer,
    RewardClient,
    RewardError,
    Ticket,
    culprit,
)
from promptist.reward.in_flight import InFlight, RecordedRewards
from promptist.reward.mailbox import POLL_S, Mailbox
from promptist.reward.messages import Failure, Ready, Result, Stop, Task
from promptist.reward.remote import RemoteRewards

if TYPE_CHECKING:
    from promptist.cluster.roles import World
    from promptist.reward.model import RewardConfig

__all__ = [
    "CachedRewards",
    "LocalRewards",
    "RecordedRewards",
    "RemoteRewards",
    "RewardClient",
    "RewardError",
    "Ticket",
    "connect",
    "on_own_device",
    "serve",
]

log = logging.getLogger(__name__)

CACHE = "plain_cache"
"""Folder of the plain pictures' measurements below the run folder."""

IN_FLIGHT = "in_flight"
"""Folder of the measurements since the last checkpoint below the run folder."""


def on_own_device(config: RewardConfig, world: World) -> RewardConfig:
    """`config` with this rank's own GPU where it leaves open which (`auto`, `cuda`); UserError as `pick_device`."""
    if config.diffusion.device not in ("auto", "cuda"):
        return config
    device = pick_device(world, config.diffusion.device)
    return replace(config, diffusion=replace(config.diffusion, device=str(device)))


def connect(world: World, config: RewardConfig, run_folder: str | Path) -> RewardClient:
    """The client of a training rank, with the run's cache of plain pictures and its record of measurements in front.

    Loads the models here where one process plays both roles; else waits for the first reward rank to be
    ready.
    """
    client: LocalRewards | RemoteRewards
    if world.role == "both":
        from promptist.reward.model import RewardModel

        client = LocalRewards(RewardModel(config, run_folder))
    else:
        client = RemoteRewards(
            world.comm, world.reward_ranks, window=config.window, deadline_s=config.deadline_s
        )
    place = client.fingerprint, world.group_rank, world.group_size
    recorded = RecordedRewards(client, InFlight(Path(run_folder) / IN_FLIGHT, *place))
    return CachedRewards(recorded, PlainCache(Path(run_folder) / CACHE, *place))


def serve(world: World, model: Measurer) -> int:
    """A reward rank's life: measure tasks in the order they arrive until every training rank has said stop.

    Returns the number of pictures measured. An exception of the model is reported to the training rank whose
    task it was, with the prompt that caused it; that rank raises and the job ends. It never becomes a score.
    """
    mailbox = Mailbox(world.comm)
    for rank in world.train_ranks:
        mailbox.send(rank, Ready(model.fingerprint, model.batch))
    start = time.perf_counter()
    busy_s, images = 0.0, 0
    waiting: deque[tuple[int, Task]] = deque()
    training = set(world.train_ranks)
    while training or waiting:
        while (arrived := mailbox.receive()) is not None:
            rank, message = arrived
            if isinstance(message, Task):
                waiting.append((rank, message))
            elif isinstance(message, Stop):
                training.discard(rank)
            else:
                raise RewardError(
                    f"rank {rank} sent a {type(message).__name__}, which only reward ranks send"
                )
        mailbox.settle()
        if not waiting:
            time.sleep(POLL_S)
            continue
        rank, task = waiting.popleft()
        began = time.perf_counter()
        try:
            measurements = model.measure(task.requests)
        except Exception as error:
            log.exception("measuring a batch of rank %d failed", rank)
            prompt = culprit(model, task.requests, error).prompt
            mailbox.send(rank, Failure(task.id, prompt, f"{type(error).__name__}: {error}"))
            continue
        now = time.perf_counter()
        busy_s += now - began
        images += len(measurements)
        mailbox.send(rank, Result(task.id, tuple(measurements), busy_s, now - start))
    mailbox.drain()
    alive_s = time.perf_counter() - start
    log.info(
        "%d pictures measured, %.0f %% of %.0f s busy", images, 100 * busy_s / max(alive_s, 1e-9), alive_s
    )
    return images
