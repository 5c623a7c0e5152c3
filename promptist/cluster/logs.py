"""`promptist logs`: the log of a run's newest attempt, and on to the next attempt when one starts.

Log lines go to stdout and nothing else does, so that they can be piped; what is said about them goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO

from promptist.cluster import attempts
from promptist.cluster.status import find_runs
from promptist.errors import EXIT_FAILURE, UserError

POLL_S = 1.0


def show(run: Path, rank: int | None = None, attempt: int | None = None, follow: bool = False) -> int:
    """Print the log of an attempt (the newest by default) of a rank (by default the leader). Returns an exit code.

    With `follow` it goes on as the log grows, passes to each new attempt unless one is named, and ends when the run is
    done (0), or has failed and is not queued again (1). UserError where there is no such run, attempt or rank.
    """
    if run not in find_runs(run):
        raise UserError(f"{run} is not a run folder: it has no config.yaml")
    if not follow:
        number = newest(run) if attempt is None else attempt
        if number is None:
            raise UserError(f"{run} has not started yet, so it has no log: `promptist status` shows the queue")
        Reader(_log(run, number, rank)).drain(sys.stdout, to_the_end=True)
        return 0
    return _follow(run, rank, attempt)


def newest(run: Path) -> int | None:
    """The number of the last attempt that has begun, None before the first."""
    folders = [p for p in (run / "logs").glob("attempt_*") if p.name[8:].isdigit() and any(p.glob("*.log"))]
    # The leader writes env.json when all ranks have their logs; an attempt may also have died before.
    begun = [p for p in folders if (p / "env.json").is_file()] or folders
    return max((int(p.name[8:]) for p in begun), default=None)


class Reader:
    """A growing log file, read line by line: half a line waits for its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb")
        self._rest = b""

    def drain(self, out: IO[str], to_the_end: bool = False) -> bool:
        """Write all that is new to `out`; with `to_the_end` also a last line without its newline. Whether there was
        anything."""
        data = self._rest + self._file.read()
        cut = len(data) if to_the_end else data.rfind(b"\n") + 1
        self._rest = data[cut:]
        if cut:
            out.write(data[:cut].decode("utf-8", "replace"))
            out.flush()
        return cut > 0


def _follow(run: Path, rank: int | None, attempt: int | None) -> int:
    reader: Reader | None = None
    if newest(run) is None:
        print(f"== {run} has not started yet", file=sys.stderr, flush=True)
    while True:
        # Looked at before the log is read: what was written until then is read to its end.
        number, end = newest(run) if attempt is None else attempt, _end(run)
        path = None if number is None else _log(run, number, rank)
        if path is not None and (reader is None or path != reader.path):
            if reader is not None:
                reader.drain(sys.stdout, to_the_end=True)
            reader = Reader(path)
            print(f"== {path}", file=sys.stderr, flush=True)
        busy = reader is not None and reader.drain(sys.stdout)
        if end is not None and not busy:
            if reader is not None:
                reader.drain(sys.stdout, to_the_end=True)
            code, sentence = end
            print(f"== {sentence}", file=sys.stderr, flush=True)
            return code
        if not busy:
            time.sleep(POLL_S)


def _end(run: Path) -> tuple[int, str] | None:
    """Exit code and a sentence where the run has come to its end."""
    if (run / "done.json").is_file():
        return 0, f"{run} is done"
    tried = attempts.read(run)
    if not tried or any(attempt.outcome is None or attempt.requeued for attempt in _last_of_each_job(tried)):
        return None
    bad = [attempt for attempt in tried if attempt.outcome in ("bad input", "crashed")]
    if not bad or bad[-1] is not tried[-1]:
        return None  # the last one was done, or was stopped and will go on
    last = bad[-1]
    return EXIT_FAILURE, f"{run}: {last.outcome} (job {last.job}): {last.sentence or f'exit code {last.exit_code}'}"


def _last_of_each_job(tried: list[attempts.Attempt]) -> list[attempts.Attempt]:
    return list({attempt.job: attempt for attempt in tried}.values())


def _log(run: Path, attempt: int, rank: int | None) -> Path:
    """The log file of a rank, by default of the leading training rank."""
    folder = run / "logs" / f"attempt_{attempt}"
    if not folder.is_dir():
        there = sorted(int(p.name[8:]) for p in folder.parent.glob("attempt_*") if p.name[8:].isdigit())
        raise UserError(f"{run} has no attempt {attempt}: it has {listed(there)}")
    path = folder / f"{_leader(folder) if rank is None else rank:05d}.log"
    if not path.is_file():
        ranks = sorted(int(p.stem) for p in folder.glob("*.log") if p.stem.isdigit())
        raise UserError(f"attempt {attempt} of {run} has no rank {int(path.stem)}: it has {listed(ranks)}")
    return path


def _leader(folder: Path) -> int:
    """The first training rank; while that is not known yet, the first rank."""
    try:
        ranks = json.loads((folder / "env.json").read_text("utf-8"))["ranks"]
        return min(int(rank["rank"]) for rank in ranks if rank["role"] != "reward")
    except (OSError, ValueError, KeyError, TypeError):
        return min((int(p.stem) for p in folder.glob("*.log") if p.stem.isdigit()), default=0)


def listed(numbers: list[int]) -> str:
    """`1-4, 7` of [1, 2, 3, 4, 7]."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "none"
