"""States of submitit's jobs where there is no accounting.

submitit asks `sacct` only. Without an accounting database that answers nothing, every state is UNKNOWN, which it takes
for "not done": a job that was killed, and so left no result, would be waited for for ever. Here the queue is asked then
(`promptist/cluster/queue.py`).
"""

from __future__ import annotations

import logging
import subprocess
import time

from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from promptist.cluster import queue
from promptist.errors import UserError

log = logging.getLogger(__name__)

GONE = "GONE"
"""The state of a job that the queue no longer knows: it ended, more than `MinJobAge` ago."""


class Watcher(SlurmInfoWatcher):
    """submitit's watcher by sacct, or by squeue where accounting is disabled."""

    def __init__(self, delay_s: int = 60) -> None:
        super().__init__(delay_s)
        self._accounting: bool | None = None  # not asked yet

    def update(self) -> None:
        """Ask about all registered jobs that have not ended."""
        if self._accounting is None:
            self._accounting = has_accounting()
        if self._accounting:
            super().update()
            return
        waiting = self._registered - self._finished
        if not waiting:
            return
        self._num_calls += 1
        try:
            entries = queue.states(sorted(waiting))
        except UserError as error:  # a controller that is down for a moment: what was known stays
            log.warning("states of jobs are not known now: %s", error)
        else:
            for job in waiting:
                entry = entries.get(job)
                state, nodes = (GONE, "") if entry is None else (entry.state, entry.nodes)
                self._info_dict[job] = {"JobID": job, "State": state, "NodeList": nodes}
        self._last_status_check = time.time()
        self._finished |= {job for job in waiting if self.is_done(job, mode="cache")}

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """sacct's answer; a heterogeneous job goes by the id of its first component, 45 for 45+0."""
        return {job.removesuffix("+0"): facts for job, facts in super().read_info(string).items()}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job has ended for good. (To submitit, CONFIGURING and SUSPENDED are ends, too.)"""
        if self._accounting is None:
            self._accounting = has_accounting()
        if self._accounting:
            return bool(super().is_done(job_id, mode))
        return self.get_state(job_id, mode) in queue.ENDED | {GONE}


class Job(SlurmJob):
    """A job of submitit that ends for its caller also where there is no accounting."""

    watcher = Watcher(delay_s=60)


def has_accounting() -> bool:
    """Whether `sacct` has a database to ask."""
    try:
        command = ["sacct", "--noheader", "--jobs", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False
    return "accounting storage is disabled" not in done.stderr.lower()
