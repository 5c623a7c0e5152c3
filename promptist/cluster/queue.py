"""What the queue says of jobs: squeue, which knows jobs that wait or run, and for some minutes (`MinJobAge`) those that
have ended. It needs no accounting database, which many small clusters do not have."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from promptist.errors import UserError

_ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY REVOKED TIMEOUT"
ENDED = frozenset(_ENDED.split())
"""States from which no job comes back. PREEMPTED is not one: such a job is requeued, or soon gone from the queue."""

_FIELDS = ("%i", "%T", "%N", "%r", "%M", "%L", "%S")
_TIMEOUT_S = 60


@dataclass(frozen=True)
class QueueEntry:
    """One job, or one task of an array. Texts as squeue prints them: `nodes` such as `node[1-3]` (empty while it
    waits), `elapsed` and `time_left` such as `1:02:03`, `start` an ISO time or `N/A` (of a job that waits: SLURM's
    estimate)."""

    job_id: str
    state: str
    nodes: str
    reason: str
    elapsed: str
    time_left: str
    start: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


def states(job_ids: Sequence[str]) -> dict[str, QueueEntry]:
    """Entries by job id (`12`; in arrays `12_3`, and `12` for every task of array 12) of the jobs that SLURM knows.

    A job that ended longer ago is absent. Raises UserError where there is no squeue, or no controller that answers.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format", "|".join(_FIELDS)]
    # Arrays as a whole: thousands of their tasks would not fit into a command line.
    parents = sorted({job.split("_")[0] for job in wanted})
    found = _ask([*command, "--jobs", ",".join(parents)])
    return {entry.job_id: entry for entry in found if entry.job_id in wanted or entry.job_id.split("_")[0] in wanted}


def _ask(command: list[str]) -> list[QueueEntry]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except FileNotFoundError:
        raise UserError("squeue is not on PATH: run this where SLURM's commands are") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue has not answered for {_TIMEOUT_S} s: is the SLURM controller up?") from None
    if done.returncode:
        if "Invalid job id" in done.stderr:  # one unknown job alone; among others squeue leaves it out
            return []
        raise UserError(f"squeue failed ({' '.join(done.stderr.split())}): is the SLURM controller up?")
    return [entry for line in done.stdout.splitlines() if (entry := _parse(line)) is not None]


def _parse(line: str) -> QueueEntry | None:
    values = line.strip().split("|")
    if len(values) != len(_FIELDS):
        return None
    # Of a heterogeneous job the first component speaks, under the id of the whole: 45+0.
    job, plus, component = values[0].partition("+")
    if plus and component != "0":
        return None
    return QueueEntry(re.sub(r"\s", "", job), *values[1:])
