"""Which rows an iteration trains on: a pure function of the seed and the iteration number.

There is no cursor to save: a resumed run asks for iteration 200 and gets what the undisturbed run got. Nor
does the number of ranks matter: the batch is drawn for all of them and then sharded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from promptist import rng

T = TypeVar("T")
_GOLDEN = (math.sqrt(5) - 1) / 2


class Order:
    """Batches over one or several weighted sources.

    Each source is walked through in a fresh permutation per epoch, so that all its rows are seen before any
    comes again. Of each batch a source gets its weight's share, rounded so that no iteration is more than one
    row off and the sum over iterations stays true to the weights.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch: int,
        seed: int,
        weights: Sequence[float] | None = None,
        purpose: str = "order",
    ) -> None:
        """`sizes`: rows of each source; `weights`: their shares (equal by default); `purpose`: names the
        draws."""
        weights = [1.0] * len(sizes) if weights is None else list(weights)
        if not sizes or min(sizes) < 1 or batch < 1 or len(weights) != len(sizes):
            raise ValueError(f"cannot order sizes={list(sizes)} weights={weights} in batches of {batch}")
        if not all(math.isfinite(w) and w > 0 for w in weights):
            raise ValueError(f"weights must be positive numbers, not {weights}")
        self.sizes, self.batch, self.seed, self.purpose = list(sizes), batch, seed, purpose
        self._offsets = np.concatenate([[0], np.cumsum(sizes)])
        shares = np.cumsum(weights) / np.sum(weights)
        shares[-1] = 1.0
        self._edges = np.concatenate([[0.0], shares]) * batch
        self._phase = rng.uniform(seed, purpose, "phase")

    def rows(self, iteration: int) -> np.ndarray:
        """Rows of iteration `iteration` (from 0): int64 `[batch]`, numbered through the sources put end to
        end."""
        counts = self._counts(iteration + 1)
        starts, ends = counts[:-1].sum(axis=0), counts.sum(axis=0)
        rows = np.concatenate([self._walk(s, int(starts[s]), int(ends[s])) for s in range(len(self.sizes))])
        return rows[rng.permutation(self.batch, self.seed, self.purpose, "mix", iteration)]

    def epoch(self, iteration: int) -> float:
        """How often the rows were seen on average before iteration `iteration`."""
        return iteration * self.batch / sum(self.sizes)

    def _counts(self, iterations: int) -> np.ndarray:
        """Rows taken of each source in iterations `0..iterations-1`: int64 `[iterations, sources]`.

        Systematic sampling: the sources' shares lie end to end on a line of length `batch`, cut at every
        integer after a shift; the shift moves by the golden ratio, which spreads the rounding evenly over the
        iterations.
        """
        shift = (self._phase + np.arange(iterations) * _GOLDEN) % 1.0
        # Rounded so that adding a batch size to it is exact: the counts must sum to the batch.
        shift = np.floor(shift * 2**24) / 2**24
        cuts = np.floor(self._edges[None, :] + shift[:, None]).astype(np.int64)
        return np.diff(cuts, axis=1)

    def _walk(self, source: int, start: int, end: int) -> np.ndarray:
        """Positions `start..end-1` of the endless walk through `source`."""
        size = self.sizes[source]
        parts = [np.empty(0, dtype=np.int64)]
        for epoch in range(start // size, -(-end // size)):
            order = rng.permutation(size, self.seed, self.purpose, "epoch", source, epoch)
            parts.append(order[max(start - epoch * size, 0) : end - epoch * size])
        return np.concatenate(parts) + self._offsets[source]


def shard(rows: Sequence[T] | np.ndarray, rank: int, world: int) -> Sequence[T] | np.ndarray:
    """Rank's contiguous part of `rows`; the parts differ in length by at most one and put end to end give
    `rows`."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world}")
    return rows[len(rows) * rank // world : len(rows) * (rank + 1) // world]
