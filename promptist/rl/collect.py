"""Small exchanges among the training ranks, through torch.distributed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


def gather(items: Sequence[T]) -> list[T]:
    """The items of all training ranks on all of them, in the order of the ranks."""
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def total(value: float, device: torch.device) -> float:
    """The sum over the training ranks, in float64."""
    found = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(found)
    return float(found)


def greatest(value: float, device: torch.device) -> float:
    """The maximum over the training ranks."""
    found = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)
