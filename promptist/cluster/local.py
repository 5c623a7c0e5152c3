"""Jobs on this machine, through submitit's LocalExecutor: the same task in the same run folder, without a scheduler."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from submitit import LocalExecutor
from submitit.core.utils import UncompletedJobError
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, LocalJob

from promptist.cluster.site import seconds
from promptist.cluster.submission import MODULES, Submission, Work
from promptist.cluster.task import Task, leave, told_code, told_sentence
from promptist.errors import ENDING, EXIT_BAD_INPUT, EXIT_STOPPED, UserError


def run_here(submission: Submission, train_ranks: int | None = None) -> list[LocalJob]:
    """Run the tasks of a submission one after another, to their ends; their jobs, all done.

    `train_ranks`: how many of the ranks train (None for an evaluation). UserError where the submission wants several
    nodes, and where a task fails: what comes after it would miss what it makes.
    """
    (own,) = submission.components if len(submission.components) == 1 else (None,)
    if own is None or own.nodes > 1:
        kind = submission.kind
        raise UserError(
            f"this machine is one node, and {kind} asks for several: run it by --local with cluster.{kind}.nodes=1"
            f"{' and without cluster.ppo_reward' if own is None else ''}"
        )
    submission.write()
    executor = LocalExecutor(submission.folder)
    executor.update_parameters(
        timeout_min=seconds(own.time) / 60, tasks_per_node=1, signal_delay_s=submission.site.signal_lead_s
    )
    jobs = []
    for work in submission.works:
        # What is there may be of another number of ranks.
        convert = train_ranks if any((work.run / "checkpoints").glob("step_*")) else None
        job = executor.submit(_task(submission, work, own.tasks, convert))
        submission.record([job.job_id])
        print(f"{work.run}: {work.kind} runs here, output in {job.paths.stdout}", flush=True)
        try:
            job.result()
        except UncompletedJobError as error:
            raise UserError(f"{work.run}: {work.kind} did not finish; {_last(str(error))}") from error
        jobs.append(job)
    return jobs


def _task(submission: Submission, work: Work, ranks: int, train_ranks: int | None) -> LocalTask:
    ending = submission.folder.absolute() / f"{submission.stem}.ending"
    return LocalTask(MODULES[work.kind], work.task.arguments, ranks, train_ranks, ending)


def _last(text: str) -> str:
    """The last line of a traceback, which says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("-", "You can"))]
    named = [line for line in lines if "Error: " in line]
    return (named or lines)[-1]


class LocalTask(Task):
    """The same on this machine, as one task of submitit's LocalExecutor, which starts `ranks` ranks by mpirun.

    (Several tasks of that executor would be processes that know nothing of each other.) It sees the GPUs that the
    submitting shell sees. At the time limit the ranks save and are started again; SIGTERM lets them save and leave.
    """

    def __init__(self, module: str, arguments: list[str], ranks: int, train_ranks: int | None, ending: Path) -> None:
        super().__init__(module, arguments)
        self.ranks = ranks
        self.train_ranks = train_ranks
        self.ending = ending
        self.gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._process: subprocess.Popen[bytes] | None = None
        self._signal = 0

    def __call__(self) -> int:
        environ = {**os.environ, ENDING: str(self.ending)}
        environ.pop("CUDA_VISIBLE_DEVICES", None)  # LocalExecutor's
        if self.gpus is not None:
            environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        os.environ[ENDING] = str(self.ending)
        self.ending.unlink(missing_ok=True)
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._forward)
        python = [sys.executable, "-u", "-m"]
        job = [*python, f"jobs.{self.module}", *self.arguments]
        if self.ranks > 1:
            job = [mpirun(), "-n", str(self.ranks), *python, "mpi4py", "-m", f"jobs.{self.module}", *self.arguments]
        commands = [job]
        if self.train_ranks is not None:
            ranks = ["--train-ranks", str(self.train_ranks)]
            commands.insert(0, [*python, "promptist.cluster.prepare", self.module, *self.arguments, *ranks])
        for command in commands:
            self._process = subprocess.Popen(command, env=environ)
            code = self._process.wait()
            if code != 0:
                return self._end(code)
        return 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_process": None}

    def _end(self, code: int) -> NoReturn:
        told = told_code()
        # A rank that has not installed its handlers yet dies of the signal, and has nothing to save.
        code = told if told is not None else EXIT_STOPPED if self._signal else code
        if code == EXIT_BAD_INPUT:
            raise UserError(told_sentence() or f"jobs.{self.module} was given bad input: its log says which")
        if code == EXIT_STOPPED:
            leave(LOCAL_REQUEUE_RETURN_CODE if self._signal == signal.SIGUSR2 else EXIT_STOPPED)
        raise RuntimeError(f"{self!r} ended with exit code {code}: {told_sentence() or 'its log says why'}")

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._process is not None and self._process.poll() is None:
            # MPICH's mpirun hands on SIGTERM and dies of USR2; Open MPI's hands on USR2, and kills the job at SIGTERM.
            told = number if self.ranks == 1 else signal.SIGUSR2 if _is_open_mpi() else signal.SIGTERM
            self._process.send_signal(told)


def mpirun() -> str:
    """The mpirun beside this Python (extra `local`), else the one on PATH; UserError where there is none."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise UserError("several ranks need mpirun, and there is none: `pip install .[local]`, or load the site's MPI")
    return found


def _is_open_mpi() -> bool:
    version = subprocess.run([mpirun(), "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in version.stdout or "OpenRTE" in version.stdout
