"""From MPI ranks to DeepSpeed's torch.distributed world, which holds the training ranks and no one else."""

from __future__ import annotations

import logging
import os
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from promptist.cluster.roles import World
from promptist.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def share_cores(world: World) -> None:
    """Limit torch on this rank to its share of the node's cores, unless OMP_NUM_THREADS says otherwise.

    torch takes every core it sees: several ranks on one node would fight for them and each be many times slower.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return
    import torch

    if world.cores < torch.get_num_threads():
        torch.set_num_threads(world.cores)
        log.info("rank %d computes with %d threads (OMP_NUM_THREADS is not set)", world.rank, world.cores)


def pick_device(world: World, device: str = "auto") -> torch.device:
    """This rank's device: `cpu`, `cuda` (one GPU per rank of the node) or `auto` (cuda where there is one).

    Raises UserError if `cuda` is asked for and this rank gets no GPU.
    """
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, not {device!r}")
    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise UserError(
            f"device is cuda but host {socket.gethostname()} shows no GPU: "
            "ask the scheduler for one or use cpu"
        )
    if count == 1:
        return torch.device(
            "cuda", 0
        )  # the scheduler shows each task its own GPU, or all tasks share the only one
    if world.local_rank >= count:
        raise UserError(
            f"rank {world.rank} is number {world.local_rank} on host {socket.gethostname()}, which has "
            f"{count} GPUs: start at most one rank per GPU"
        )
    return torch.device("cuda", world.local_rank)


def init_training(world: World, device: str = "auto", timeout_s: float = 1800.0) -> torch.device:
    """Start torch.distributed and DeepSpeed over the training ranks; returns this rank's device.

    Also for one process, as DeepSpeed wants a world there too. `timeout_s` bounds each collective. Raises
    UserError as `pick_device`.
    """
    if not world.trains:
        raise RuntimeError("reward ranks take no part in torch.distributed")
    share_cores(world)
    chosen = pick_device(world, device)
    # DeepSpeed reads these when it is imported: without CUDA in use it must not look for another accelerator.
    os.environ["DS_ACCELERATOR"] = chosen.type
    import torch

    if torch.distributed.is_initialized():
        return chosen
    os.environ.update(rendezvous(world, chosen.index or 0))
    # torchrun's store would be taken for this world's.
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    _start_deepspeed(chosen, timeout_s)
    assert torch.distributed.get_world_size() == world.group_size
    return chosen


def rendezvous(world: World, local_rank: int = 0) -> dict[str, str]:
    """Environment variables by which the training ranks find each other. Collective over them.

    All five: with one missing, DeepSpeed would take MPI's whole world as its own.
    """
    address, port = world.share((_own_address(world), _free_port()) if world.group_rank == 0 else ("", 0))
    variables = {
        "RANK": str(world.group_rank),
        "WORLD_SIZE": str(world.group_size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    if _on_one_node(world) and "GLOO_SOCKET_IFNAME" not in os.environ and os.path.exists("/sys/class/net/lo"):
        # Gloo would look up the host's name, which fails or points elsewhere on many laptops and containers.
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    return variables


def _start_deepspeed(device: torch.device, timeout_s: float) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        # Its shared-memory all-reduce is compiled on first use (a compiler, a minute); gloo does the same
        # work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )


def _on_one_node(world: World) -> bool:
    return len({world.nodes[r] for r in world.train_ranks}) == 1


def _own_address(world: World) -> str:
    """An address of this host that the other training ranks reach."""
    if _on_one_node(world):
        return "127.0.0.1"
    other = next(world.hosts[r] for r in world.train_ranks if world.nodes[r] != world.nodes[world.rank])
    # The address from which packets to another node leave: a host's own name may resolve to 127.0.1.1
    # (Debian).
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((other, 9))
        except OSError as error:
            raise UserError(
                f"host {socket.gethostname()} cannot resolve or reach host {other}: {error}"
            ) from error
        return str(probe.getsockname()[0])


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
