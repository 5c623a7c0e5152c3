"""The metrics of a run as series by name, and how far a window of them has moved: what alarms and curves read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class History:
    """The metrics of a run by name, up to some step."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        points: dict[str, list[tuple[int, float]]] = {}
        for record in records:
            for key, value in record.items():
                if key != "step" and (value is None or isinstance(value, (int, float))):
                    points.setdefault(key, []).append((int(record["step"]), math.nan if value is None else value))
        self._steps = {key: np.array([step for step, _ in found]) for key, found in points.items()}
        self._values = {key: np.array([value for _, value in found], np.float64) for key, found in points.items()}
        self.steps = sorted({int(record["step"]) for record in records})

    def upto(self, step: int) -> History:
        cut = History(())
        for key, steps in self._steps.items():
            end = int(np.searchsorted(steps, step, "right"))
            if end:
                cut._steps[key], cut._values[key] = steps[:end], self._values[key][:end]
        cut.steps = [s for s in self.steps if s <= step]
        return cut

    def names(self) -> list[str]:
        return list(self._values)

    def __getitem__(self, key: str) -> Array:
        return self._values.get(key, np.empty(0))

    def steps_of(self, key: str) -> list[int]:
        return [int(step) for step in self._steps.get(key, ())]

    def recent(self, key: str, window: int) -> Array | None:
        """The newest `window` values, None while there are fewer."""
        values = self[key]
        return values[-window:] if len(values) >= window else None

    def ends(self, key: str, window: int) -> tuple[Array, Array] | None:
        """The first and the newest `window` values, None while they would overlap."""
        values = self[key]
        return (values[:window], values[-window:]) if len(values) >= 2 * window else None


def moved(before: Array, after: Array) -> float:
    """Difference of the means of two windows in standard errors: Welch's t; infinite where nothing varies."""
    change = float(np.mean(after) - np.mean(before))
    error = math.sqrt(float(np.var(before, ddof=1)) / len(before) + float(np.var(after, ddof=1)) / len(after))
    if error <= 1e-12 * max(abs(change), 1e-300):
        return math.copysign(math.inf, change) if abs(change) > 1e-12 else 0.0
    return change / error
