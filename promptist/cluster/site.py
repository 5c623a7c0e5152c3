"""What is particular to a site and how large its jobs are: `configs/cluster/*.yaml`, the only place that knows a
partition or an account (beside `slurm/env.sh` for jobs submitted without Python)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from promptist.config import load
from promptist.errors import UserError

_TIME = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
_OURS = (
    "account array chdir constraint cpus-per-task dependency error gpus-per-node job-name kill-on-invalid-dep mem "
    "nodes ntasks ntasks-per-node open-mode output partition qos requeue no-requeue signal time"
)
"""Directives that submission sets by itself: from the config's own keys, or because restarts rest on them."""


@dataclass
class Resources:
    """What one job takes. One task is one MPI rank, and one rank uses one GPU.

    `gpus_per_node`, `mem_gb` (0: all of a node) and `tasks_per_node` count per node, `cpus_per_task` cores. `time` is
    the limit as H:MM:SS or D-HH:MM:SS, in quotes: YAML reads 12:30:00 as a number. `partition` and `constraint` win
    over the site's.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int = 1
    mem_gb: float | None = None  # null: the partition's default
    time: str = "1:00:00"
    partition: str | None = None
    constraint: str | None = None

    @property
    def tasks(self) -> int:
        return self.nodes * self.tasks_per_node

    def check(self, where: str) -> None:
        """UserError where a value makes no sense; `where` is the section's name in the cluster config."""
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("gpus_per_node", 0), ("cpus_per_task", 1)):
            if getattr(self, name) < least:
                got = getattr(self, name)
                raise UserError(f"{where}.{name} in the cluster config must be at least {least}, not {got}")
        if 1 < self.gpus_per_node < self.tasks_per_node:
            raise UserError(
                f"{where}.tasks_per_node = {self.tasks_per_node} in the cluster config is more than its "
                f"{self.gpus_per_node} GPUs per node: start at most one rank per GPU"
            )
        if self.mem_gb is not None and not self.mem_gb >= 0:
            raise UserError(f"{where}.mem_gb in the cluster config must not be negative, it is {self.mem_gb}")
        for name in ("partition", "constraint"):
            _check_word(f"{where}.{name}", getattr(self, name))
        seconds(self.time, f"{where}.time in the cluster config")


@dataclass
class ClusterConfig:
    """A site. `environment` are lines of shell that each job runs first, `directives` more of sbatch's options
    (`mail-type: FAIL`; `exclusive:` where there is no value). `ppo_reward` makes PPO a heterogeneous job: the nodes of
    `ppo` train and those of `ppo_reward` paint."""

    partition: str | None = None  # null: the cluster's default
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    environment: list[str] = field(default_factory=list)
    mpi: Literal["pmi2", "pmix", "none"] = "pmi2"
    """How srun starts MPI ranks (`srun --mpi=list`): pmi2 for MPICH, pmix for Open MPI."""
    directives: dict[str, str | None] = field(default_factory=dict)
    signal_lead_s: int = 300
    """Seconds before the time limit at which every rank is told to save; SLURM may be up to a minute early."""
    parallel: int = 256
    """Tasks of an array that may run at the same time."""
    sft: Resources = field(default_factory=Resources)
    ppo: Resources = field(default_factory=Resources)
    ppo_reward: Resources | None = None
    eval: Resources = field(default_factory=Resources)  # one shard
    reduce: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint"):
            _check_word(name, getattr(self, name))
        for kind in ("sft", "ppo", "ppo_reward", "eval", "reduce"):
            if (resources := getattr(self, kind)) is not None:
                resources.check(kind)
        if self.ppo_reward is not None and self.ppo_reward.cpus_per_task != self.ppo.cpus_per_task:
            raise UserError(
                f"ppo.cpus_per_task = {self.ppo.cpus_per_task} and ppo_reward.cpus_per_task = "
                f"{self.ppo_reward.cpus_per_task} in the cluster config: one srun starts both, give them the same"
            )
        for name in ("signal_lead_s", "parallel"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} of the cluster config must be at least 1, not {getattr(self, name)}")
        for name in self.directives:
            if name.lstrip("-") in _OURS.split():
                raise UserError(
                    f"directives of the cluster config: `{name}` is set by the submission itself, take it out"
                )
            if not re.fullmatch(r"[a-z][a-z-]*", name):
                raise UserError(
                    f"directives of the cluster config: {name!r} is no long option of sbatch; write it without dashes "
                    "in front, such as mail-type: FAIL"
                )

    def of(self, kind: str) -> tuple[Resources, ...]:
        """Components of a job of kind sft, ppo, eval or reduce; more than one for a heterogeneous job."""
        own: Resources = getattr(self, kind)
        return (own, self.ppo_reward) if kind == "ppo" and self.ppo_reward is not None else (own,)


def load_site(path: str | Path, overrides: Sequence[str] = ()) -> ClusterConfig:
    """The site of a YAML file and `key=value`s; UserError where a key is unknown or a value makes no sense."""
    return load(ClusterConfig, path, [_quoted(text) for text in overrides])


def seconds(time: str, where: str = "the time limit") -> int:
    """Length of a time limit `H:MM:SS` or `D-HH:MM:SS`; UserError for anything else, and for none at all."""
    match = _TIME.fullmatch(time)
    if match is None:
        hint = ", in quotes (YAML takes it for a number)" if time.isdigit() else ""
        raise UserError(f"{where} must have the form H:MM:SS or D-HH:MM:SS{hint}, not {time!r}")
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + rest
    if total == 0:
        raise UserError(f"{where} is {time!r}, which leaves a job no time")
    return total


def nodes_of_ranks(components: Sequence[Resources]) -> list[int]:
    """Node number of each rank, as srun will place them: in blocks, one component after the other."""
    tasks = [component.tasks_per_node for component in components for _ in range(component.nodes)]
    return [node for node, count in enumerate(tasks) for _ in range(count)]


def gpu_hours(components: Sequence[Resources]) -> float:
    """What a job may use up at most: nodes x GPUs x time limit."""
    return sum(c.nodes * c.gpus_per_node * seconds(c.time) / 3600 for c in components)


def _quoted(override: str) -> str:
    """On a command line the shell eats the quotes that a time limit needs in YAML."""
    key, equals, value = override.partition("=")
    if key.strip().endswith(".time") and equals and _TIME.fullmatch(value):
        return f'{key}="{value}"'
    return override


def _check_word(name: str, value: str | None) -> None:
    if value is not None and (not value or any(c.isspace() for c in value)):
        raise UserError(f"{name} in the cluster config must be a name without blanks or null, not {value!r}")
