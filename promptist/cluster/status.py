"""What the files of a run folder say about the run, without a process of the run to ask."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from promptist.cluster.checkpoint import find_latest
from promptist.cluster.metrics import duration, read_metrics
from promptist.errors import UserError

# The section of a job's config that only this sort of job has, and the key in it that holds its length.
_LENGTH_KEYS = {"ppo": "iterations", "sft": "steps"}


def find_runs(root: Path) -> list[Path]:
    """Folders below `root` that hold a run, by name. A run does not hold other runs."""
    if not root.is_dir():
        return []
    if (root / "config.yaml").is_file():
        return [root]
    return [run for child in sorted(root.iterdir()) if child.is_dir() for run in find_runs(child)]


def newest_export(root: Path) -> Path | None:
    """The exported model of the PPO run below `root` that finished last, None if none did."""
    finished = [
        run
        for run in find_runs(root)
        if (run / "done.json").is_file() and (run / "export/config.json").is_file() and "ppo" in _config(run)
    ]
    return max(finished, key=lambda run: (run / "done.json").stat().st_mtime) / "export" if finished else None


def describe(run: Path) -> str:
    """`ppo 120/200, last heard of 2 min ago, newest checkpoint step_000100`.

    Raises UserError if `run` is no run folder.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run folder: it has no config.yaml")
    kind, total = _length(_config(run))
    metrics = run / "metrics.jsonl"
    records = read_metrics(metrics) if metrics.is_file() else []
    step = str(records[-1]["step"]) if records else "0"
    parts = [f"{kind} {step}/{total}" if total else f"{kind} {step}"]
    if (run / "done.json").is_file():
        parts.append(f"done {_age(run / 'done.json')}")
    elif records:
        parts.append(f"last heard of {_age(metrics)}")
    else:
        parts.append("no step finished yet")
    # Sizes only: hashing gigabytes is for resuming.
    newest = find_latest(run / "checkpoints", hashes=False)
    parts.append(f"newest checkpoint {newest.name}" if newest else "no checkpoint")
    return ", ".join(parts)


def _config(run: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{run / 'config.yaml'} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{run / 'config.yaml'} does not hold the config of a run")
    return content


def _length(config: dict[str, Any]) -> tuple[str, int | None]:
    for kind, key in _LENGTH_KEYS.items():
        if isinstance(config.get(kind), dict):
            return kind, config[kind].get(key)
    return "step", None


def _age(path: Path) -> str:
    return f"{duration(time.time() - path.stat().st_mtime)} ago"
