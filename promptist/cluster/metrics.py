"""Metrics of a run: `metrics.jsonl`, TensorBoard, and the progress line.

A step is a finished iteration, counted from 1: the lines of step 200 describe the iteration that ended with
checkpoint `step_000200`. Files of an iteration (rollouts, images) carry its step in their name,
`step_000200...`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptist.cluster.run_folder import write_atomically
from promptist.errors import UserError

METRICS = "metrics.jsonl"
_OF_STEP = ("rollouts", "images")
_STEP = re.compile(r"step_(\d+)")


@dataclass
class LoggingConfig:
    """`samples` rollouts with pictures are kept every `samples_every` steps (0: never)."""

    tensorboard: bool = True
    samples_every: int = 10
    samples: int = 4

    def __post_init__(self) -> None:
        for name in ("samples_every", "samples"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 0:
                raise UserError(f"logging.{name} must not be negative, got {value}")


class MetricLog:
    """Writes metrics on rank 0 of the training ranks; on the others every call does nothing."""

    def __init__(self, run_folder: Path, cfg: LoggingConfig, rank: int = 0) -> None:
        self.path = run_folder
        self._active = rank == 0
        self._tensorboard = cfg.tensorboard
        self._writer: Any = None
        self._file: Any = None
        self._purge_step: int | None = None

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append one line `{"step": step, ...}`, numbers (of numpy and torch too) also to TensorBoard.

        A number that is not finite is written as null, which JSON has; the trainer stops on it by itself.
        """
        if not self._active:
            return
        record = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        if self._file is None:
            self._file = open(self.path / METRICS, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._tensorboard:
            self._log_tensorboard(step, record)

    def cut_back(self, step: int) -> None:
        """On resume: forget all that was logged or kept after `step`, so that it comes again only once."""
        if not self._active:
            return
        self.close()
        path = self.path / METRICS
        if path.exists():
            write_atomically(
                path,
                "".join(
                    json.dumps(r, ensure_ascii=False) + "\n" for r in read_metrics(path) if r["step"] <= step
                ),
            )
        for name in _OF_STEP:
            for entry in (self.path / name).glob("*"):
                match = _STEP.match(entry.name)
                if match and int(match.group(1)) > step:
                    shutil.rmtree(entry) if entry.is_dir() else os.unlink(entry)
        self._purge_step = step + 1

    def close(self) -> None:
        for stream in (self._file, self._writer):
            if stream is not None:
                stream.close()
        self._file = self._writer = None

    def _log_tensorboard(self, step: int, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # purge_step makes readers drop what earlier attempts wrote from this step on.
            self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=self._purge_step)
        for name, value in record.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a `metrics.jsonl`, oldest first. A last line torn by a crash is left out.

    Raises UserError naming a broken line elsewhere.
    """
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or a torn line
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}:{number} is not a metrics record: repair or remove the line") from None
    return records


def progress_line(
    name: str, step: int, total: int, values: Mapping[str, float | str], seconds_per_step: float
) -> str:
    """`ppo 12/200 | reward 0.512 | kl 0.031 | ETA 4 min`: what the console shows of a step."""
    shown = [
        f"{label} {value if isinstance(value, str) else _short(value)}" for label, value in values.items()
    ]
    return " | ".join(
        [f"{name} {step}/{total}", *shown, f"ETA {duration((total - step) * seconds_per_step)}"]
    )


def duration(seconds: float) -> str:
    """`45 s`, `4 min`, `2 h 05 min`, `3 d 4 h`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = max(seconds, 0.0)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _short(value: float) -> str:
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{value:.1e}"


def _plain(value: Any) -> Any:
    """A JSON value: numbers of numpy and torch become Python's."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
