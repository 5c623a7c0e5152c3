"""Run folders without a run: what the commands that look at runs read."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml


def make_run(
    folder: Path, kind: str, length: int, steps: int, *, done: float | None = None, export: bool = False
) -> Path:
    folder.mkdir(parents=True)
    key = {"ppo": "iterations", "sft": "steps"}[kind]
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"name": folder.name}, kind: {key: length}}))
    if steps:
        (folder / "metrics.jsonl").write_text("".join(f'{{"step": {i + 1}}}\n' for i in range(steps)))
    if export:
        (folder / "export").mkdir()
        (folder / "export/config.json").write_text("{}")
    if done is not None:
        (folder / "done.json").write_text("{}")
        os.utime(folder / "done.json", (done, done))
    return folder


def add_attempt(run: Path, job: str, restart: int, **facts: Any) -> None:
    """`attempts/JOB.RESTART.json` as prepare and finish write it; `started` and `ended` in seconds ago."""
    now = time.time()
    record: dict[str, Any] = {
        "job": job, "restart": restart, "host": "node1", "started": 600, "from_step": None, "ended": None,
        "exit_code": None, "outcome": None, "sentence": None, "step": None, "requeued": False, **facts,
    }  # fmt: skip
    for key in ("started", "ended"):
        if record[key] is not None:
            record[key] = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(now - record[key]))
    (run / "attempts").mkdir(exist_ok=True)
    (run / f"attempts/{job}.{restart}.json").write_text(json.dumps(record))
