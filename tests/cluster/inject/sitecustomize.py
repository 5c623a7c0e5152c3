"""Deaths at chosen moments, in the ranks of a job under test: PYTHONPATH names this folder, PROMPTIST_DEATH the moment.

    pause:STEP          the leading rank has logged STEP: it leaves a file `reached` in the run folder and waits for a
                        signal, or for its end
    save:MOMENT:STEP    the leading rank kills itself while it saves the checkpoint of STEP: `files` (engines and state
                        are written), `record` (complete.json too, not yet renamed), `renamed`

A run dies once: where `reached` is there, it lives.
"""

from __future__ import annotations

import os


def install(kind: str, *rest: str) -> None:
    import signal
    import time
    from pathlib import Path
    from typing import Any

    from promptist.cluster import checkpoint, metrics, preemption

    log, told = metrics.MetricLog.log, preemption.Preemption._handle
    commit, sync_and_hash, rename = checkpoint._commit, checkpoint._sync_and_hash, os.rename
    step, signals = int(rest[-1]), []

    def first_time(run: Path) -> bool:
        if (run / "reached").exists():
            return False
        (run / "reached").touch()
        return True

    def die(path: Path) -> None:
        if first_time(Path(*path.parts[: path.parts.index("checkpoints")])):
            os.kill(os.getpid(), signal.SIGKILL)

    def pause(self: Any, at: int, record: Any) -> None:
        log(self, at, record)
        if self._active and at == step and first_time(self.path):
            while not signals:
                time.sleep(0.02)

    def handle(self: Any, number: int, frame: Any) -> None:
        told(self, number, frame)
        signals.append(number)

    def after_files(path: Path) -> dict[str, Any]:
        if f"step_{step:06d}.tmp" in path.parts and os.environ["SLURM_PROCID"] == "0":
            die(path)
        return sync_and_hash(path)

    def around_rename(temporary: Path, final: Path, *args: Any, **kwargs: Any) -> None:
        ours = checkpoint.step_of(final) == step
        if ours and rest[0] == "record":
            os.rename = lambda source, target: (die(final), rename(source, target))
        commit(temporary, final, *args, **kwargs)
        os.rename = rename
        if ours and rest[0] == "renamed":
            die(final)

    if kind == "pause":
        metrics.MetricLog.log, preemption.Preemption._handle = pause, handle
    elif rest[0] == "files":
        checkpoint._sync_and_hash = after_files
    else:
        checkpoint._commit = around_rename


if {"PROMPTIST_DEATH", "PROMPTIST_ENDING", "SLURM_PROCID"} <= os.environ.keys():
    install(*os.environ["PROMPTIST_DEATH"].split(":"))
