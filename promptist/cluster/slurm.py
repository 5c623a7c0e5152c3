"""What SLURM says about this job, and asking it to run the job again."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping

from promptist.errors import UserError

_RETRY_S = (1.0, 5.0, 20.0, 40.0, 60.0)


def job_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The id by which scontrol finds this job, None outside of a job.

    In an array `12_3`: SLURM_JOB_ID alone would name the whole array for its last task.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return environ.get("SLURM_JOB_ID") or None


def restart_count(environ: Mapping[str, str] = os.environ) -> int:
    """How often SLURM has started this job again."""
    return int(environ.get("SLURM_RESTART_COUNT") or 0)


def nodes_of_ranks(environ: Mapping[str, str] = os.environ) -> list[int] | None:
    """Node number of each rank of an `srun` step over the whole job, as its batch script can foresee it; None outside.

    Ranks are placed in blocks (`srun --distribution=block`), the components of a heterogeneous job one after the other.
    """
    if "SLURM_JOB_ID" not in environ:
        return None
    components = int(environ.get("SLURM_HET_SIZE") or 0)
    names = [f"SLURM_TASKS_PER_NODE_HET_GROUP_{i}" for i in range(components)] or ["SLURM_TASKS_PER_NODE"]
    counts = [count for name in names for count in _tasks_per_node(environ.get(name, "1"), name)]
    return [node for node, count in enumerate(counts) for _ in range(count)]


def _tasks_per_node(text: str, name: str) -> list[int]:
    """[2, 2, 2, 1] of `2(x3),1`."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UserError(f"{name}={text!r} is not SLURM's form (such as 2(x3),1); unset it or start by sbatch")
        counts += [int(match.group(1))] * int(match.group(2) or 1)
    return counts


def requeue(key: str) -> None:
    """Put the job back into the queue. SLURM ends the running steps at once: call it last.

    A controller that is busy or starts again is asked again for two minutes. UserError if it refuses.
    """
    for pause_s in (*_RETRY_S, None):
        done = subprocess.run(["scontrol", "requeue", key], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if pause_s is None:
            raise UserError(f"SLURM does not requeue job {key} ({done.stderr.strip()}): submit the same command again")
        time.sleep(pause_s)
