"""What the files of a run folder, and the queue, say about the run, without a process of the run to ask."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from promptist.cluster import attempts
from promptist.cluster.checkpoint import COMPLETE, find_latest
from promptist.cluster.metrics import METRICS, duration, read_metrics
from promptist.cluster.queue import QueueEntry, states
from promptist.errors import UserError

log = logging.getLogger(__name__)

# The section of a job's config that only this sort of job has, and the key in it that holds its length.
_LENGTH_KEYS = {"ppo": "iterations", "sft": "steps"}
_SUBMISSION = "submission"
_HEADS = ("run", "job", "state", "progress", "ETA", "last heard of", "checkpoint", "attempts", "alarms")

Judge = Callable[[str, Sequence[Mapping[str, Any]]], int]


@dataclass(frozen=True)
class Status:
    """One line of `promptist status`: texts, empty where there is nothing to say. `trouble`: how the last attempt that
    did not end well ended, empty for a run that is done; `alarms`: how many its metrics raise, empty for none."""

    run: Path
    kind: str
    state: str
    progress: str
    eta: str = ""
    heard: str = ""
    checkpoint: str = ""
    attempts: str = ""
    trouble: str = ""
    alarms: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return (
            str(self.run), self.kind, self.state, self.progress, self.eta, self.heard, self.checkpoint, self.attempts,
            self.alarms,
        )  # fmt: skip


def find_runs(root: Path) -> list[Path]:
    """Folders below `root` that hold a run, or one that waits in the queue, by name. A run does not hold other runs."""
    if not root.is_dir():
        return []
    if (root / "config.yaml").is_file() or _submitted_config(root) is not None:
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


def look(runs: Sequence[Path], count_alarms: Judge | None = None) -> list[Status]:
    """The status of each run. The queue is asked once for all, and left out where there is no SLURM.
    `count_alarms(kind, records)` is asked for the alarms that a run's metrics raise.

    Raises UserError naming a folder that is no run.
    """
    jobs = {run: job_ids(run) for run in runs}
    queue: dict[str, QueueEntry] | None = None
    if any(jobs.values()) and shutil.which("squeue"):
        try:
            queue = states([job for found in jobs.values() for job in found])
        except UserError as error:
            log.warning("the queue is not known: %s", error)
    return [_status(run, None if queue is None else _entries(jobs[run], queue), count_alarms) for run in runs]


def job_ids(run: Path) -> list[str]:
    """Ids of the jobs that were submitted for a run, or have worked on it, oldest first."""
    submitted = []
    for path in sorted((run / _SUBMISSION).glob("*.json")):
        try:
            submitted += [str(job) for job in json.loads(path.read_text("utf-8"))["jobs"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written, or of another kind
    return list(dict.fromkeys([attempt.job for attempt in attempts.read(run)] + submitted))


def table(rows: Sequence[Status]) -> str:
    """Aligned columns, those left out in which no run has anything; below a run what its last attempt died of."""
    used = [i for i in range(len(_HEADS)) if any(row.cells[i] for row in rows)]
    cells = [[_HEADS[i] for i in used], *([row.cells[i] for i in used] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(used))]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    troubles = [[], *([f"    {row.trouble}"] if row.trouble else [] for row in rows)]
    return "\n".join(line for pair in zip(lines, troubles, strict=True) for line in (pair[0], *pair[1]))


def finished_shards(run: Path) -> tuple[int, int] | None:
    """(finished, of how many) shards of an evaluation by its newest note; None where there is none."""
    notes = [
        (path.stat().st_mtime, int(match.group(1)))
        for path in (run / "finished").glob("shard_*.json")
        if (match := re.fullmatch(r"shard_\d+_of_(\d+)\.json", path.name))
    ]
    if not notes:
        return None
    of = max(notes)[1]
    return sum(count == of for _, count in notes), of


def _status(run: Path, queue: list[QueueEntry] | None, count_alarms: Judge | None) -> Status:
    config = _config(run)
    kind, total = _length(config)
    records = read_metrics(run / METRICS) if (run / METRICS).is_file() else []
    step = int(records[-1]["step"]) if records else 0
    done, tried = (run / "done.json").is_file(), attempts.read(run)
    # Sizes only: hashing gigabytes is for resuming.
    newest = find_latest(run / "checkpoints", hashes=False)
    return Status(
        run,
        kind,
        state=_state(run, done, queue, tried),
        progress=_evaluated(run) if kind == "eval" else f"{step}/{total}" if total else str(step),
        eta="" if done or not records or not total else _eta(records[-1], total - step, _mtime(run / METRICS)),
        heard="" if done else _heard(run),
        checkpoint=f"{newest.name}, {_age(_mtime(newest / COMPLETE))}" if newest else "",
        attempts=_tried(tried),
        trouble="" if done else _trouble(tried),
        alarms=str(count_alarms(kind, records) or "") if count_alarms else "",
    )


def _entries(jobs: list[str], queue: Mapping[str, QueueEntry]) -> list[QueueEntry]:
    """Those of `jobs`, of which an array's own id stands for all its tasks."""
    wanted = set(jobs)
    return [entry for job, entry in queue.items() if job in wanted or job.split("_")[0] in wanted]


def _state(run: Path, done: bool, queue: list[QueueEntry] | None, tried: list[attempts.Attempt]) -> str:
    alive = [entry for entry in queue or () if not entry.has_ended]
    if alive:
        return _queued(alive)
    if done:
        return f"done {_age(_mtime(run / 'done.json'))}"
    if tried and tried[-1].outcome:
        last = tried[-1]
        if last.outcome == "done" and _length(_config(run))[0] == "eval":
            return "not reduced yet"  # a shard was done
        return f"{last.outcome} {_age(_seconds(last.ended))}" if last.ended else str(last.outcome)
    if queue:
        return f"{queue[-1].state.lower()} ({queue[-1].job_id})"
    return "gone from the queue" if tried and queue is not None else ""


def _queued(entries: list[QueueEntry]) -> str:
    """`running (12, node[1-2])`, `pending (12, Resources)`; of an array `3 running, 13 pending (12)`."""
    if len(entries) == 1:
        entry = entries[0]
        why = entry.nodes if entry.state == "RUNNING" else "" if entry.reason in ("", "None") else entry.reason
        return f"{entry.state.lower()} ({entry.job_id}{f', {why}' if why else ''})"
    counts = Counter(entry.state.lower() for entry in entries)
    jobs = dict.fromkeys(entry.job_id.split("_")[0] for entry in entries)
    return f"{', '.join(f'{n} {state}' for state, n in counts.most_common())} ({', '.join(jobs)})"


def _evaluated(run: Path) -> str:
    """An evaluation has no steps: its finished shards, or before the first the measurements and rewrites so far."""
    shards = finished_shards(run)
    if shards is None:
        return f"{attempts.progress(run) or 0} pieces"
    return "" if shards == (1, 1) else f"{shards[0]}/{shards[1]} shards"


def _eta(record: Mapping[str, Any], left: int, written: float) -> str:
    """Time to the end by the last step's pace; what has passed since that step counts while the pace allows it."""
    eta_s, pace = record.get("time/eta_s"), record.get("time/step", record.get("time/iteration"))
    if eta_s is None and pace is not None:
        eta_s = pace * left
    if eta_s is None:
        return ""
    passed = time.time() - written
    return duration(eta_s - passed if pace is not None and passed < pace else eta_s)


def _heard(run: Path) -> str:
    """When a process of the run last wrote something that shows it alive."""
    files = [run / METRICS, *(run / "logs").glob("attempt_*/*.log"), *(run / "finished").glob("*.jsonl")]
    times = [_mtime(path) for path in files if path.is_file()]
    return _age(max(times)) if times else ""


def _tried(tried: list[attempts.Attempt]) -> str:
    """`3: 1 stopped, 1 crashed`."""
    if not tried:
        return ""
    counts = Counter(attempt.outcome for attempt in tried if attempt.outcome not in (None, "done"))
    return f"{len(tried)}{': ' if counts else ''}{', '.join(f'{n} {outcome}' for outcome, n in counts.items())}"


def _trouble(tried: list[attempts.Attempt]) -> str:
    bad = [attempt for attempt in tried if attempt.outcome in ("bad input", "crashed")]
    if not bad:
        return ""
    last = bad[-1]
    when = f" {_age(_seconds(last.ended))}" if last.ended else ""
    said = last.sentence or f"exit code {last.exit_code}, its log says more"
    return f"{last.outcome}{when} (job {last.job}, start {last.restart}): {' '.join(said.split())}"


def _submitted_config(run: Path) -> Path | None:
    """The config of a run that was submitted; None in the folder of an array of runs, too."""
    if not (run / _SUBMISSION / "submit.json").is_file() or (run / _SUBMISSION / "submit.configs").is_file():
        return None
    return next(iter(sorted((run / _SUBMISSION).glob("*.yaml"))), None)


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.yaml"
    if not path.is_file():
        submitted = _submitted_config(run)  # not started yet
        if submitted is None:
            raise UserError(f"{run} is not a run folder: it has no config.yaml")
        path = submitted
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold the config of a run")
    return content


def _length(config: dict[str, Any]) -> tuple[str, int | None]:
    for kind, key in _LENGTH_KEYS.items():
        if isinstance(config.get(kind), dict):
            return kind, config[kind].get(key)
    return ("eval", None) if "methods" in config else ("run", None)


def _mtime(path: Path) -> float:
    return path.stat().st_mtime


def _seconds(stamp: str) -> float:
    """Seconds since the epoch of `2025-11-02T10:00:00+0100`."""
    return datetime.fromisoformat(stamp).timestamp()


def _age(moment: float) -> str:
    return f"{duration(time.time() - moment)} ago"
