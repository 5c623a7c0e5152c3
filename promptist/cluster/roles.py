"""Who does what: training ranks and reward ranks of one MPI world.

torch.distributed will hold the training ranks and no one else (DeepSpeed takes the whole torch world as its
data parallel group), so the split is made here, by MPI, before any of it starts.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeVar

from promptist.errors import UserError

Role = Literal["train", "reward", "both"]
T = TypeVar("T")
_POLL_S = 0.002
BARRIER_S = 1800.0
"""As long as a collective of torch.distributed may take (`launch.init_training`)."""


@dataclass
class RolesConfig:
    """Which ranks paint and score: the last `reward_per_node` ranks of each node, or all of the last
    `reward_nodes`."""

    reward_per_node: int | None = None
    reward_nodes: int | None = None

    def __post_init__(self) -> None:
        if self.reward_per_node is not None and self.reward_nodes is not None:
            raise UserError(
                "roles.reward_per_node and roles.reward_nodes are both set: set one, the other to null"
            )
        for name in ("reward_per_node", "reward_nodes"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise UserError(f"roles.{name} must be at least 1, not {value}")


def assign(node_of_rank: Sequence[int], config: RolesConfig) -> list[Role]:
    """Role of each world rank.

    `node_of_rank[r]` identifies rank r's node; nodes are ordered by first appearance, ranks within a node by
    rank. One process alone plays both roles. Raises UserError if several processes would have no reward or no
    training rank.
    """
    size = len(node_of_rank)
    if size == 1:
        return ["both"]
    if config.reward_per_node is not None:
        chosen = _last_of_each_node(node_of_rank, config.reward_per_node)
        setting = f"roles.reward_per_node={config.reward_per_node}"
    elif config.reward_nodes is not None:
        nodes = list(dict.fromkeys(node_of_rank))
        rewarding = set(nodes[-config.reward_nodes :])
        chosen = {rank for rank, node in enumerate(node_of_rank) if node in rewarding}
        setting = f"roles.reward_nodes={config.reward_nodes}"
    else:
        raise UserError(
            f"{size} processes but no reward rank: set roles.reward_per_node or roles.reward_nodes"
        )
    if len(chosen) == size:
        nodes_used = Counter(node_of_rank)
        raise UserError(
            f"{setting} makes all {size} processes on {len(nodes_used)} node(s) reward ranks, none trains: "
            "start more processes or lower it"
        )
    return ["reward" if rank in chosen else "train" for rank in range(size)]


def _last_of_each_node(node_of_rank: Sequence[int], k: int) -> set[int]:
    ranks_of: dict[int, list[int]] = {}
    for rank, node in enumerate(node_of_rank):
        ranks_of.setdefault(node, []).append(rank)
    return {rank for ranks in ranks_of.values() for rank in ranks[-k:]}


@dataclass(frozen=True)
class World:
    """This process's place. `comm` holds all ranks, `group` those of its role; both None where MPI is not in
    use."""

    rank: int
    size: int
    role: Role
    group_rank: int
    group_size: int
    local_rank: int  # among all ranks of this node, training or not: one GPU each
    roles: tuple[Role, ...]
    hosts: tuple[str, ...]  # host name of every rank
    nodes: tuple[int, ...]  # node of every rank, numbered by first appearance
    cores: int = 1  # this rank's share of the cores it may run on
    comm: Any = None
    group: Any = None

    @property
    def trains(self) -> bool:
        return self.role != "reward"

    @property
    def rewards(self) -> bool:
        return self.role != "train"

    @property
    def train_ranks(self) -> tuple[int, ...]:
        """World ranks that train; the first of them leads."""
        return tuple(r for r, role in enumerate(self.roles) if role != "reward")

    @property
    def reward_ranks(self) -> tuple[int, ...]:
        return tuple(r for r, role in enumerate(self.roles) if role != "train")

    @property
    def leads(self) -> bool:
        """Whether this is the first training rank: the one that prints, logs metrics and commits files."""
        return self.rank == self.train_ranks[0]

    def barrier(self) -> None:
        """Wait for all ranks of this role without burning the core (a blocking MPI call spins).

        RuntimeError after `BARRIER_S`: one of them hangs, and the job must not wait for its time limit.
        """
        _polite_barrier(self.group, BARRIER_S)

    def barrier_all(self) -> None:
        """Wait for all ranks of the world, however long their work takes."""
        _polite_barrier(self.comm)

    def share(self, value: T) -> T:
        """The first group rank's `value`, on all ranks of this role."""
        return value if self.group is None else self.group.bcast(value, root=0)

    def share_all(self, value: T) -> T:
        """The leading training rank's `value`, on all ranks of the world."""
        return value if self.comm is None else self.comm.bcast(value, root=self.train_ranks[0])


def _polite_barrier(comm: Any, timeout_s: float = math.inf) -> None:
    if comm is None:
        return
    deadline = time.monotonic() + timeout_s
    request = comm.Ibarrier()
    while not request.Test():
        if time.monotonic() > deadline:
            raise RuntimeError(f"a rank did not come to a barrier within {timeout_s:.0f} s: look into the ranks' logs")
        time.sleep(_POLL_S)


def join_world(roles: RolesConfig | None = None) -> World:
    """Join the MPI world and split it by role; with `roles=None` every rank trains (SFT).

    Works without a launcher, then without MPI too. Raises UserError where the launcher's processes do not see
    each other, or `assign` finds no valid split.
    """
    mpi = _load_mpi()
    if mpi is None:
        role: Role = "train" if roles is None else "both"
        return World(
            0, 1, role, 0, 1, 0, roles=(role,), hosts=(socket.gethostname(),), nodes=(0,), cores=len(_own_cores())
        )
    comm = mpi.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    _check_launcher(size)
    node = comm.Split_type(mpi.COMM_TYPE_SHARED, key=rank)
    local_rank = node.Get_rank()
    first_of_node = node.bcast(rank, root=0)
    node.Free()
    facts = comm.allgather((first_of_node, socket.gethostname(), _own_cores()))
    numbering = {first: i for i, first in enumerate(dict.fromkeys(first for first, _, _ in facts))}
    nodes = tuple(numbering[first] for first, _, _ in facts)
    all_roles: list[Role] = ["train"] * size if roles is None else assign(nodes, roles)
    role = all_roles[rank]
    group = comm.Split(1 if role == "reward" else 0, key=rank)
    return World(
        rank,
        size,
        role,
        group.Get_rank(),
        group.Get_size(),
        local_rank,
        roles=tuple(all_roles),
        hosts=tuple(host for _, host, _ in facts),
        nodes=nodes,
        cores=share_of_cores(nodes, [cores for _, _, cores in facts], rank),
        comm=comm,
        group=group,
    )


def share_of_cores(node_of_rank: Sequence[int], cores_of_rank: Sequence[frozenset[int]], rank: int) -> int:
    """How many cores a rank can call its own, at least 1.

    `cores_of_rank[r]`: the cores rank r may run on. Some launchers bind every rank to cores of its own, others let
    all ranks of a node run on all of them: a core is divided among the ranks that may run on it.
    """
    node = node_of_rank[rank]
    neighbours = [cores for n, cores in zip(node_of_rank, cores_of_rank, strict=True) if n == node]
    share = sum(Fraction(1, sum(core in cores for cores in neighbours)) for core in cores_of_rank[rank])
    return max(1, int(share))


def _own_cores() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0))


def _load_mpi() -> Any:
    """`mpi4py.MPI`, or None where no MPI library is installed and no launcher started several processes."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if _launched_processes() > 1:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{_launched_processes()} processes were started but MPI cannot be loaded ({reason}): "
                "install mpi4py and an MPI library, e.g. `pip install .[local]`"
            ) from error
        return None
    return MPI


def _check_launcher(size: int) -> None:
    started = _launched_processes()
    if size == 1 and started > 1:
        raise UserError(
            f"the launcher started {started} processes but each sees an MPI world of its own: use the MPI "
            "mpi4py is linked to (srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH; or its own mpirun)"
        )


def _launched_processes() -> int:
    """How many processes the launcher (Open MPI, hydra, srun) says it started, 1 if none speaks."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 1
