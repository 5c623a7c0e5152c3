"""How long rewriting and painting took: kept apart from the measurements, which must not depend on it.

One JSONL file per attempt and rank in `timings/`, a line per batch; the reducer sums all up in `timings.json`. A
rewrite's time is that of its batch divided by the number of rewrites in it, a picture's likewise; models are loaded
before the clock starts. What a killed attempt did counts as well, so a piece of work may be there twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

FOLDER, SUMMARY = "timings", "timings.json"
REWRITE, PICTURE, RATIO = "rewrite", "picture", "log_ratio"


class Stopwatch:
    """Seconds of each piece of work that is done in batches: `lap(n)` when n more are done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last = time.perf_counter()

    def lap(self, pieces: int) -> None:
        now = time.perf_counter()
        self.seconds += [(now - self._last) / pieces] * pieces
        self._last = now


class Clock:
    """Takes down the batches of one attempt and rank."""

    def __init__(self, run: Path, writer: str) -> None:
        self._path = run / FOLDER / f"{writer}.jsonl"

    def add(self, kind: str, method: str, seconds: Sequence[float]) -> None:
        """Pieces of one kind for one method, with the seconds of each."""
        if not seconds:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "method": method, "seconds": [round(s, 6) for s in seconds]}) + "\n")


def summarise(run: Path) -> dict[str, Any]:
    """kind -> method -> `count`, `total_s` and the quantiles `p50_s` and `p95_s` of one piece, over all attempts.

    A picture that several methods show was painted once, and counts for the first of them.
    """
    pieces: dict[str, dict[str, list[float]]] = {}
    for path in sorted((run / FOLDER).glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            try:
                entry = json.loads(line)
                pieces.setdefault(entry["kind"], {}).setdefault(entry["method"], []).extend(entry["seconds"])
            except (ValueError, KeyError, TypeError):
                continue  # the line that a killed attempt was writing
    return {
        kind: {method: _summary(seconds) for method, seconds in sorted(of.items())}
        for kind, of in sorted(pieces.items())
    }


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"count": len(seconds), "total_s": float(np.sum(seconds)), "p50_s": float(p50), "p95_s": float(p95)}
