"""After `srun`: `python -m promptist.cluster.finish ENDING CODE` records how the attempt ended and, where the run is to
go on, puts the job back into the queue.

The batch script does this and no rank: a rank can only requeue where it was stopped in good order, and what is killed
cannot. Done and bad input never go on; a stop always does; a crash does while checkpoints advance.
"""

from __future__ import annotations

import sys
from pathlib import Path

from promptist.cluster import attempts, slurm
from promptist.errors import EXIT_FAILURE, UserError, run_main


def main(argv: list[str]) -> int:
    """Exit code of the batch script: 0 when the run is done, else the job's own."""
    if len(argv) != 2 or not argv[1].isdigit():
        raise UserError("usage: python -m promptist.cluster.finish ENDING CODE, with the exit code of srun")
    attempt = attempts.end(Path(argv[0]), int(argv[1]))
    said = f": {attempt.sentence}" if attempt.sentence else ""
    step = "no checkpoint yet" if attempt.step is None else f"step {attempt.step}"
    ended = f"{attempt.outcome} ({step}, exit code {attempt.exit_code})"
    line = f"job {attempt.job}, start {attempt.restart}: {ended}{said}"
    if attempt.requeued:
        print(f"{line}; the job goes back to the queue", file=sys.stderr, flush=True)
        try:
            # Steps and this script end with it: nothing may come after.
            slurm.requeue(attempt.job)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            attempt.requeued = False
            attempts.write(Path(argv[0]).parent.parent, attempt)
    elif attempt.outcome in ("crashed", "stopped"):
        print(f"{line}; not queued again: too many such ends in a row without a new checkpoint", file=sys.stderr)
    else:
        print(line, file=sys.stderr)
    return attempt.exit_code if attempt.exit_code is not None else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(run_main(main))
