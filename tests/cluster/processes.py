"""Processes of this host, by what they were started with: SLURM's daemons and the tasks of its jobs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def every() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def environ(pid: int) -> dict[str, str]:
    """Environment with which a process was started; empty where it has gone."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def _status(pid: int, field: str) -> str:
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return ""
    match = re.search(rf"^{field}:\s*(.*)$", text, re.M)
    return match.group(1) if match else ""


def name(pid: int) -> str:
    return _status(pid, "Name")


def parent(pid: int) -> int:
    return int(_status(pid, "PPid") or 0)


def ancestors() -> set[int]:
    pid, found = os.getpid(), set()
    while pid > 0:
        found.add(pid)
        pid = parent(pid)
    return found


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process has gone (it is no child of this one)."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _status(pid, "State")[:1] not in ("", "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
