"""Which weights leave the run: the slightly under-fitted checkpoint and the one of best validation loss.

Rule: the earliest validation whose loss is at most `(1 + under_fit)` times the best one of the run. The best
is known only at the end, so weights of every validation that may still be chosen are kept. Those are few: a
validation that did not improve on all before it can never be the earliest within tolerance, and one beyond
the tolerance of the best so far never comes back into it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Candidates:
    """Validations that may still be chosen: oldest first, losses falling, so the last is the best so far."""

    under_fit: float
    kept: list[tuple[int, float]] = field(default_factory=list)
    """(step, validation loss)"""

    def offer(self, step: int, loss: float) -> bool:
        """Take note of a validation; True if its weights must be kept."""
        if self.kept and loss >= self.kept[-1][1]:
            return False
        self.kept = [(s, v) for s, v in self.kept if v <= loss * (1.0 + self.under_fit)] + [(step, loss)]
        return True

    @property
    def chosen(self) -> tuple[int, float]:
        """The slightly under-fitted one."""
        return self.kept[0]

    @property
    def best(self) -> tuple[int, float]:
        """The one of best validation loss."""
        return self.kept[-1]

    @property
    def steps(self) -> list[int]:
        """Steps whose weights are needed."""
        return [step for step, _ in self.kept]


def folder_of(root: Path, step: int) -> Path:
    """`root/step_000200`, a Hugging Face folder."""
    return root / f"step_{step:06d}"


def prune(root: Path, steps: Iterable[int]) -> None:
    """Delete weights of all other steps. Only after a checkpoint that no longer names them is committed."""
    needed = {folder_of(root, step).name for step in steps}
    for path in root.glob("step_*"):
        if path.name not in needed:
            shutil.rmtree(path)


def export(source: Path, target: Path) -> None:
    """Copy a candidate to its final place, which is replaced as a whole."""
    partial = target.with_name(target.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
