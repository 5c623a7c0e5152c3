"""From a planned job to SLURM: the batch script, the files that a relaunch by hand needs, and submitit's jobs.

    RUN/submission/
      ppo.yaml              the config, resolved: what the job reads
      submit.sh submit.pkl  batch script and task: `sbatch RUN/submission/submit.sh` starts the same again
      submit.json diff.patch  command line, time, id of the job, commit, and the difference to it
      reduce.*              the same of an evaluation's reducer
      12_*                  submitit's own: script as it was submitted, pickles, output of each task

An array of runs has such a folder of its own, NAME.sweep-HASH/submission, beside those of its runs; its script
`submit.sh` has one task per line of `submit.configs`. What was submitted differs from `submit.sh` by the dependency on
earlier jobs alone: by hand, later, those are no longer known.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env

from promptist import config as configs
from promptist.cluster import queue
from promptist.cluster.run_folder import source, write_atomically
from promptist.cluster.site import ClusterConfig, Resources, seconds
from promptist.cluster.task import Task
from promptist.cluster.watcher import Job
from promptist.errors import UserError

FOLDER = "submission"
MODULES = {"sft": "sft", "ppo": "ppo", "eval": "evaluate", "reduce": "evaluate"}
_DAY_S, _HOUR_S = 86400, 3600
_SUBMITIT_TIMEOUTS = 1000
"""submitit's cap on requeues at time limits; it counts only signals that come before a job's own handlers."""


@dataclass(frozen=True)
class Work:
    """One task of a submission: a job of `jobs/` on the config in `run`'s submission folder."""

    run: Path
    kind: str  # sft, ppo, eval, reduce
    job: Any  # its config: SFTJob, PPOJob, EvalJob
    arguments: tuple[str, ...] = ()  # beyond the config: shard=3/16

    @property
    def config(self) -> Path:
        name = "eval" if self.kind == "reduce" else self.kind
        return (self.run / FOLDER / f"{name}.yaml").absolute()

    @property
    def task(self) -> Task:
        return Task(MODULES[self.kind], [str(self.config), *self.arguments])


@dataclass(frozen=True)
class Submission:
    """What one sbatch gets: a job, or an array of jobs of one kind. `folder` is submitit's; `components` more than one
    for a heterogeneous job; `stem` names the files, `name` the job in the queue."""

    name: str
    folder: Path
    works: tuple[Work, ...]
    site: ClusterConfig
    components: tuple[Resources, ...]
    stem: str = "submit"

    @property
    def kind(self) -> str:
        return self.works[0].kind

    @property
    def is_array(self) -> bool:
        return len(self.works) > 1

    @property
    def script(self) -> Path:
        """Where `write` puts the batch script."""
        return self.folder.absolute() / f"{self.stem}.sh"

    def alone(self, index: int) -> Submission:
        """Task `index` of an array as a submission of its own run."""
        work = self.works[index]
        return replace(self, name=work.run.name, folder=work.run / FOLDER, works=(work,))

    def text(self, after: Sequence[str] = ()) -> str:
        """The batch script; with `after`, ids of jobs, it waits until these are done, and is cancelled if one fails."""
        executor = self.executor(after)
        if self.is_array:
            executor.parameters["map_count"] = len(self.works)
        return executor._make_submission_file_text(executor._submitit_command_str, "")

    def executor(self, after: Sequence[str] = ()) -> Executor:
        """submitit's executor with all parameters set."""
        executor = Executor(self.folder, max_num_timeout=_SUBMITIT_TIMEOUTS)
        executor.components, executor.site = self.components, self.site
        executor.update_parameters(**_parameters(self, after))
        return executor

    def write(self) -> None:
        """Everything a relaunch needs but `submit.json`. An array's runs get each their own script, too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        git = source()
        for index, work in enumerate(self.works):
            work.config.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(work.config, configs.to_yaml(work.job))
            number = f"_{index}" if self.is_array else ""
            DelayedSubmission(work.task).dump(self.folder / f"{self.stem}{number}.pkl")
        write_atomically(self.script, self.text())
        write_atomically(self.folder / "diff.patch", git["diff"] or "")
        if _is_sweep(self):
            write_atomically(self.folder / f"{self.stem}.configs", "".join(f"{work.config}\n" for work in self.works))
            for index in range(len(self.works)):
                self.alone(index).write()

    def record(self, jobs: Sequence[str], after: Sequence[str] = ()) -> None:
        """Note what was submitted; `jobs` are the ids of its tasks."""
        facts = {
            "command": shlex.join(sys.orig_argv),
            "folder": str(Path.cwd()),
            "submitted": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "after": list(after),
            "commit": source()["commit"],
        }
        write_atomically(self.folder / f"{self.stem}.json", json.dumps({"jobs": list(jobs), **facts}, indent=1) + "\n")
        if _is_sweep(self):
            for index, job in enumerate(jobs):
                self.alone(index).record([job], after)

    def check_queue(self) -> None:
        """UserError where an earlier submission of one of the runs still waits or works: two would write one folder."""
        earlier = {}
        folders = dict.fromkeys([self.folder, *(work.run / FOLDER for work in self.works)])
        for folder in folders:
            with contextlib.suppress(OSError, ValueError, KeyError):
                record = json.loads((folder / f"{self.stem}.json").read_text("utf-8"))
                earlier.update(dict.fromkeys(record["jobs"], folder))
        for job, entry in queue.states(list(earlier)).items():
            if not entry.has_ended:
                raise UserError(
                    f"{earlier[job].parent} is in the queue already, as job {job} ({entry.state}): wait for it, or "
                    f"`scancel {job}` first"
                )


class Executor(SlurmExecutor):
    """submitit's, for heterogeneous jobs too (which it does not know), and for dry runs where there is no SLURM."""

    job_class = Job
    components: tuple[Resources, ...] = ()
    site: ClusterConfig

    @classmethod
    def affinity(cls) -> int:
        return 2

    def _num_tasks(self) -> int:
        return sum(component.tasks for component in self.components)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        text: str = super()._make_submission_file_text(command, uid)
        lines = text.splitlines()
        last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
        for component in self.components[1:]:
            options = {**_options(self.site, component), "requeue": True, "signal": f"USR2@{self.site.signal_lead_s}"}
            block = ["#SBATCH hetjob", *(_directive(name, value) for name, value in sorted(options.items()))]
            lines[last + 1 : last + 1] = block
            last += len(block)
        return "\n".join(lines) + "\n"


def submit(submission: Submission, after: Sequence[str] = ()) -> list[Job]:
    """Write the folder and submit; one job of submitit per task. `after`: ids of jobs that must be done first.

    UserError where there is no SLURM here, a run is in the queue already, or sbatch refuses.
    """
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on PATH: submit from a login node, or run on this machine by --local")
    submission.check_queue()
    submission.write()
    executor = submission.executor(after)
    try:
        with _outside_of_jobs():
            jobs = executor.submit_array([work.task for work in submission.works])
    except (FailedJobError, FailedSubmissionError) as error:
        reasons = [line for line in str(error).splitlines() if "sbatch: error" in line]
        raise UserError(f"sbatch refuses {submission.name}: {' '.join(reasons) or error}") from error
    tasks = list(range(executor._num_tasks()))
    # For arrays submitit makes jobs of its own class, which would never see a killed one end without accounting.
    watched = [Job(folder=executor.folder, job_id=job.job_id, tasks=tasks) for job in jobs]
    submission.record([job.job_id for job in watched], after)
    return watched


def parent_ids(jobs: Sequence[Job]) -> list[str]:
    """What a dependency names: the ids of the jobs, of an array its own."""
    return list(dict.fromkeys(job.job_id.split("_")[0] for job in jobs))


def _parameters(submission: Submission, after: Sequence[str]) -> dict[str, Any]:
    """Names and values as submitit's executor takes them."""
    site, own = submission.site, submission.components[0]
    more = {**_options(site, own), "chdir": str(Path.cwd()), "requeue": True}
    if after:
        more |= {"dependency": f"afterok:{':'.join(after)}", "kill-on-invalid-dep": "yes"}
    step = [f"--mpi={site.mpi}", "--distribution=block", "--kill-on-bad-exit=1", f"--cpus-per-task={own.cpus_per_task}"]
    if len(submission.components) > 1:
        step.append(f"--het-group={','.join(map(str, range(len(submission.components))))}")
    return {
        "job_name": submission.name,
        "time": -(-seconds(own.time) // 60),  # minutes, for submitit's own reckoning
        "nodes": own.nodes,
        "signal_delay_s": site.signal_lead_s,
        "array_parallelism": site.parallel,
        "wckey": None,  # submitit's own, which sites with keys of theirs refuse
        "setup": _setup(submission),
        "teardown": [f'{_python()} -m promptist.cluster.finish "$PROMPTIST_ENDING" $?', ""],
        "srun_args": step,
        "additional_parameters": more,
    }


def _options(site: ClusterConfig, own: Resources) -> dict[str, Any]:
    """sbatch's options of one component."""
    options: dict[str, Any] = {
        **{name: True if value is None else value for name, value in site.directives.items()},
        "partition": own.partition or site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": own.constraint or site.constraint,
        "nodes": own.nodes,
        "ntasks-per-node": own.tasks_per_node,
        "cpus-per-task": own.cpus_per_task,
        "gpus-per-node": own.gpus_per_node or None,
        "mem": None if own.mem_gb is None else f"{round(own.mem_gb * 1024)}M",
        "time": slurm_time(seconds(own.time)),
    }
    return {name: value for name, value in options.items() if value is not None}


def slurm_time(total_s: int) -> str:
    """`1-02:00:00` of seconds."""
    days, rest = divmod(total_s, _DAY_S)
    hours, rest = divmod(rest, _HOUR_S)
    return f"{days}-{hours:02d}:{rest // 60:02d}:{rest % 60:02d}"


def _setup(submission: Submission) -> list[str]:
    """Lines of shell before srun: the site's, then as in slurm/env.sh."""
    stem, folder = submission.stem, shlex.quote(str(submission.folder.absolute()))
    config = shlex.quote(str(submission.works[0].config))
    key, number = "$SLURM_JOB_ID", ""
    if submission.is_array:
        key, number = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "_$SLURM_ARRAY_TASK_ID"
    lines = [
        *submission.site.environment,
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        "export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1",
        f"folder={folder}",
    ]
    if _is_sweep(submission):
        lines.append(f'config=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" "$folder/{stem}.configs")')
    else:
        lines.append(f"config={config}")
    task = '"$folder/${key}_submitted.pkl"'
    return [
        *lines,
        "# Submitted by hand (sbatch this file), the job has another number than that for which submitit pickled.",
        f"key={key}",
        f'[ -e {task} ] || cp "$folder/{stem}{number}.pkl" {task}',
        f'PROMPTIST_ENDING=$({_python()} -m promptist.cluster.prepare {MODULES[submission.kind]} "$config") || {{',
        "    code=$?",
        f'    [ -z "$PROMPTIST_ENDING" ] || {_python()} -m promptist.cluster.finish "$PROMPTIST_ENDING" $code',
        "    exit $code",
        "}",
        "export PROMPTIST_ENDING",
    ]


def _directive(name: str, value: Any) -> str:
    return f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"


def _is_sweep(submission: Submission) -> bool:
    """An array of runs; the shards of an evaluation are an array of one run."""
    return len({work.run for work in submission.works}) > 1


def _python() -> str:
    return shlex.quote(sys.executable)


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Submitting from inside a job (or an interactive one), without handing on its SLURM_* variables as defaults."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        if conf:
            os.environ["SLURM_CONF"] = conf
        yield
