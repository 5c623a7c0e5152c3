"""The attempts of a run under a scheduler: what each began with, how it ended, whether there is to be another.

RUN/attempts/JOBKEY.RESTART.json    one per start of the job by SLURM (`prepare` writes it, `finish` completes it)
RUN/attempts/JOBKEY.RESTART.ending  code and sentence of the first rank that ended badly (`promptist/errors.py`)
"""

from __future__ import annotations

import json
import logging
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from promptist.cluster import checkpoint
from promptist.cluster.run_folder import write_atomically
from promptist.errors import EXIT_BAD_INPUT, EXIT_STOPPED, UserError

log = logging.getLogger(__name__)

FOLDER = "attempts"
MAX_CRASHES = 3
"""So many crashes in a row without a new checkpoint end a run: what crashes it will be there the next time, too."""
MAX_STOPS = 20
"""So many stops in a row without a new checkpoint: the time limit is too near to the signal, or the run is preempted
faster than it can work."""

_OUTCOMES = {0: "done", EXIT_BAD_INPUT: "bad input", EXIT_STOPPED: "stopped"}


@dataclass
class Attempt:
    """One start of a run by the scheduler. `from_step` and `step`: newest checkpoint (for an evaluation: finished
    pieces of work) when it began and ended."""

    job: str
    restart: int
    host: str
    started: str
    from_step: int | None = None
    ended: str | None = None
    exit_code: int | None = None
    outcome: str | None = None  # done, stopped, bad input, crashed; None: running, or ended with its node
    sentence: str | None = None
    step: int | None = None
    requeued: bool = False


def begin(run: Path, job: str, restart: int, from_step: int | None) -> Path:
    """Record a start; the path for `PROMPTIST_ENDING`."""
    attempt = Attempt(job, restart, socket.gethostname(), _now(), from_step)
    path = run / FOLDER / f"{job}.{restart}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ending = path.with_suffix(".ending").resolve()  # steps may run in another folder
        for old in (ending, *ending.parent.glob(f"{ending.name}.*")):
            old.unlink(missing_ok=True)
        _write(path, attempt)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): set run.root to a place that can") from error
    return ending


def read(run: Path) -> list[Attempt]:
    """All attempts of a run, oldest first; a torn file is left out."""
    names = {field.name for field in fields(Attempt)}
    found = []
    for path in (run / FOLDER).glob("*.json"):
        try:
            record: dict[str, Any] = json.loads(path.read_text("utf-8"))
            found.append(Attempt(**{k: v for k, v in record.items() if k in names}))
        except (ValueError, TypeError):
            continue
    return sorted(found, key=lambda attempt: (attempt.started, attempt.restart))


def end(ending: Path, code: int) -> Attempt:
    """Complete the record of the attempt whose `PROMPTIST_ENDING` was `ending` and whose `srun` returned `code`.

    `requeued` of the result says what is to be done next; the caller does it.
    """
    run, path = ending.parent.parent, ending.with_suffix(".json")
    try:
        attempt = Attempt(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no record of an attempt ({error}): start jobs by the scripts in slurm/") from error
    told = _told(ending)
    attempt.exit_code = int(told.get("code", code))
    attempt.sentence = told.get("sentence") or None
    attempt.outcome = _OUTCOMES.get(attempt.exit_code, "crashed")
    attempt.step, attempt.ended = progress(run), _now()
    own = [*(a for a in read(run) if a.job == attempt.job and a.restart < attempt.restart), attempt]
    if attempt.outcome == "stopped":
        attempt.requeued = in_a_row(own, "stopped") < MAX_STOPS
    elif attempt.outcome == "crashed":
        # The shards of an evaluation share a folder: that others advance says nothing about this one.
        attempt.requeued = in_a_row(own, "crashed", forgiving=not (run / "finished").is_dir()) < MAX_CRASHES
    write(run, attempt)
    return attempt


def write(run: Path, attempt: Attempt) -> None:
    """Write a record down; a full disk is no error: what is to be done next does not depend on it."""
    path = run / FOLDER / f"{attempt.job}.{attempt.restart}.json"
    try:
        _write(path, attempt)
    except OSError as error:
        log.warning("%s could not be written (%s)", path, error.strerror)


def _told(ending: Path) -> dict[str, Any]:
    """What the first rank that ended badly said; nothing where it was killed, its code alone on a full disk."""
    try:
        told: dict[str, Any] = json.loads(ending.read_text("utf-8"))
        return told
    except (OSError, ValueError):
        codes = [path.suffix[1:] for path in ending.parent.glob(f"{ending.name}.*")]
        return {"code": codes[0]} if codes and codes[0].isdigit() else {}


def in_a_row(attempts: list[Attempt], outcome: str, forgiving: bool = True) -> int:
    """How many of the last attempts ended like this; with `forgiving`, since the last one that brought a new
    checkpoint, itself included."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.outcome is None:
            continue  # its node died: no fault of the run
        if attempt.outcome != outcome:
            break
        count += 1
        if forgiving and attempt.step != attempt.from_step:
            break
    return count


def progress(run: Path) -> int | None:
    """Step of the newest whole checkpoint (sizes compared, contents not); of an evaluation, the number of finished
    pieces of work; None before the first."""
    if (run / "finished").is_dir():
        return sum(path.read_bytes().count(b"\n") for path in (run / "finished").glob("*.jsonl"))
    newest = checkpoint.find_latest(run / "checkpoints", hashes=False)
    return None if newest is None else checkpoint.step_of(newest)


def _write(path: Path, attempt: Attempt) -> None:
    write_atomically(path, json.dumps(asdict(attempt), indent=1) + "\n")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
