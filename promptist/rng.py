"""Counter-based randomness: every draw is a pure function of `(run seed, purpose, counters...)`.

No stream is carried along, so order, number of ranks, batch mates and restarts change no draw. The parts of a
key are hashed by BLAKE2b into the 128-bit key of a Philox generator (Salmon et al., *Parallel random numbers:
as easy as 1, 2, 3*, SC 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(*parts: str | int) -> int:
    """128-bit key of `parts`.

    Each part goes in with its type and length, so `("a", "bc")`, `("ab", "c")`, `(1,)` and `("1",)` all
    differ.
    """
    digest = blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int, np.integer)):
            raise TypeError(f"a part of a random key must be str or int, not {type(part).__name__}: {part!r}")
        kind, text = (b"s", part) if isinstance(part, str) else (b"i", str(int(part)))
        data = text.encode("utf-8", "surrogatepass")
        digest.update(kind + len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def generator(*parts: str | int) -> np.random.Generator:
    """A fresh generator at the start of the stream of `parts`."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))


def normal(shape: Sequence[int], *parts: str | int) -> torch.Tensor:
    """Standard normal float32 tensor of `shape`, on the CPU (the same numbers whatever the device that uses
    them)."""
    import torch

    values = generator(*parts).standard_normal(math.prod(shape), dtype=np.float32)
    return torch.from_numpy(values).reshape(tuple(shape))


def permutation(n: int, *parts: str | int) -> np.ndarray:
    """A random order of `0..n-1`: int64 `[n]`."""
    return generator(*parts).permutation(np.arange(n, dtype=np.int64))


def integer(low: int, high: int, *parts: str | int) -> int:
    """A uniform integer of `low..high`, both included."""
    if high < low:
        raise ValueError(f"no integer lies between {low} and {high}")
    return int(generator(*parts).integers(low, high, endpoint=True))


def uniform(*parts: str | int) -> float:
    """A uniform float64 of `[0, 1)`."""
    return float(generator(*parts).random())
