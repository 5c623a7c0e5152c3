"""A throw-away SLURM on this host: a controller and several nodes, real daemons, below one folder.

    python -m tests.cluster.testbed up FOLDER [--nodes 4] > cluster.env && source cluster.env
    sbatch slurm/ppo.sbatch ...; squeue; scontrol show job ...
    python -m tests.cluster.testbed down FOLDER

Needs root and the packages slurm-wlm and munge. It has its own ports and its own munge (key and socket in FOLDER), so
that another SLURM on this host is neither seen nor touched. The nodes report the same host name; they differ in
SLURMD_NODENAME. Their GPUs are counted and handed out (CUDA_VISIBLE_DEVICES), but there is no hardware behind them.

    FOLDER/
      slurm.conf gres.conf cgroup.conf   SLURM_CONF names the first, SLURM looks for the others beside it
      munge/                             key and socket
      log/ jobcomp.txt                   what the daemons say, how jobs ended
      state/ spool/NODE tmp/NODE gpu/    the daemons' own
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from promptist.errors import UserError, run_main
from tests.cluster import processes

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "srun")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

# Nodes larger than this host: that config files of real clusters fit. Without cred_expire a requeued job waits for two
# minutes. Job ids of their own: MPICH names its shared memory by them, and two clusters may be up at once.
SLURM_CONF = """\
ClusterName=testbed
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
MpiDefault=pmi2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ReturnToService=1
MessageTimeout=30
KillWait=5
MinJobAge=600
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE \
GraceTime=120
PartitionName=urgent Nodes=ALL DefaultTime=60 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=128 Boards=1 SocketsPerBoard=1 "
    "CoresPerSocket=128 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN"
)
PORTS = range(20000, 32000)  # below those that the kernel gives to clients
START_TIMEOUT_S = 60.0
POLL_S = 0.2


def missing() -> str | None:
    """Why no testbed can start here, in one sentence; None where it can."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a SLURM node starts jobs as root only: run as root"
    return None


class Cluster:
    """SLURM daemons below `folder`; a context manager starts and stops them.

    `env` is the environment in which sbatch, squeue, srun and scontrol talk to this cluster (and its jobs start): it
    has SLURM_CONF, and this Python (first on PATH, in PROMPTIST_PYTHON for `slurm/*.sbatch`) with the repository.
    """

    def __init__(self, folder: Path | str, nodes: int = 4, gpus_per_node: int = 8) -> None:
        self.folder = Path(folder).resolve()
        self.nodes = [f"node{i}" for i in range(1, nodes + 1)]
        self.gpus_per_node = gpus_per_node
        self.conf = self.folder / "slurm.conf"
        self.env = _environment(self.conf)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- the daemons --

    def start(self) -> None:
        """Start munge, the controller and the nodes; returns when every node is idle. UserError where that fails."""
        reason = missing()
        if reason:
            raise UserError(f"no SLURM testbed: {reason}")
        self._write()
        try:
            own = {"key-file": "key", "seed-file": "seed", "socket": "socket", "pid-file": "pid", "log-file": "log"}
            # --force: it complains about folders that others could write to, such as /tmp.
            self._daemon("munged", "--force", *(f"--{name}={self.folder}/munge/{file}" for name, file in own.items()))
            self._daemon("slurmctld", "-c")
            for node in self.nodes:
                self._daemon("slurmd", "-N", node)
            deadline = time.monotonic() + START_TIMEOUT_S
            while self._node_states() != {"idle"}:
                if time.monotonic() > deadline:
                    raise UserError(f"SLURM's nodes are not idle after {START_TIMEOUT_S:.0f} s\n{self.logs()}")
                time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all jobs and daemons, at once; the logs stay. Nothing happens where none run."""
        pids = [int(file.read_text()) for file in self._pid_files() if file.read_text().strip()]
        # Nodes before their steps: a slurmd that lives would report, and the controller would requeue.
        for pid in pids:
            if self._is_ours(pid):
                processes.kill(pid)
        for pid in processes.every():
            if self._is_ours(pid) and pid not in processes.ancestors():
                processes.kill(pid)
        for file in self._pid_files():
            file.unlink(missing_ok=True)

    def is_up(self) -> bool:
        """Whether one of this folder's daemons runs."""
        return any(file.read_text().strip() and self._is_ours(int(file.read_text())) for file in self._pid_files())

    def logs(self, lines: int = 30) -> str:
        """The ends of the daemons' logs and the queue, for the message of a failure."""
        parts = [f"== squeue\n{self.run('squeue', check=False).stdout}"] if self.is_up() else []
        for file in sorted((self.folder / "log").glob("*.log")):
            parts.append(f"== {file.name}\n{_tail(file, lines)}")
        return "\n".join(parts)

    def _write(self) -> None:
        """The folder with all config files, fresh."""
        if self.is_up():
            raise UserError(f"{self.folder}: a SLURM runs here already; take it down first")
        if self.folder.exists() and any(self.folder.iterdir()) and not self.conf.exists():
            raise UserError(f"{self.folder} holds something else: name an empty folder")
        if len(str(self.folder / "munge/socket")) > 100:  # a socket's address has 108 bytes
            raise UserError(f"{self.folder}: too long a name for a socket, name a folder nearer to /")
        for name in ("state", "spool", "tmp", "log", "gpu", "munge"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        own = [f"{kind}/{node}" for kind in ("spool", "tmp") for node in self.nodes]
        for name in ("state", "log", "gpu", "munge", *own):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for gpu in range(self.gpus_per_node):  # SLURM wants a character device behind each
            (self.folder / f"gpu/{gpu}").symlink_to("/dev/null")
        host = socket.gethostname().split(".")[0]
        ports = _free_ports(1 + len(self.nodes))
        nodes = [
            NODE.format(name=node, host=host, port=port, gpus=self.gpus_per_node)
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        first_job = 1000 * (ports[0] - PORTS.start) + 1
        self.conf.write_text(
            SLURM_CONF.format(folder=self.folder, host=host, ports=ports, first_job=first_job, nodes="\n".join(nodes))
        )
        gpus = f"[0-{self.gpus_per_node - 1}]"
        (self.folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu File={self.folder}/gpu/{gpus}\n" for node in self.nodes)
        )
        # Containers have no cgroup to give away; SLURM can do without since 23.02, and knows no such word before.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n" if _version() >= (23, 2) else "")

    def _daemon(self, *command: str) -> None:
        """Start a program that goes into the background by itself."""
        log = self.folder / "log" / f"{command[0]}.start.log"
        with log.open("a") as out:
            done = subprocess.run(
                command, env=self.env, stdout=out, stderr=out, stdin=subprocess.DEVNULL, timeout=START_TIMEOUT_S
            )
        if done.returncode:
            raise UserError(f"{command[0]} does not start (exit code {done.returncode}): {_tail(log, 5)}")

    def _node_states(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-o", "%T", check=False).stdout.split())

    def _pid_files(self) -> list[Path]:
        files = [*self.folder.glob("slurmd-*.pid"), self.folder / "slurmctld.pid", self.folder / "munge/pid"]
        return [file for file in files if file.exists()]

    def _is_ours(self, pid: int) -> bool:
        """A daemon of this folder or a process of one of its jobs: a dead one's number may be another's by now."""
        environ = processes.environ(pid)
        if environ.get("SLURM_CONF") != str(self.conf):
            return False
        return "SLURM_JOB_ID" in environ or processes.name(pid).startswith(("munged", "slurm"))

    # -- its users --

    def run(self, *command: str, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster, from the repository; AssertionError with its output where it fails."""
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.env, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
        assert done.returncode == 0 or not check, (
            f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
        )
        return done

    def sbatch(
        self, script: Path | str, *args: object, cwd: Path = REPOSITORY, env: Mapping[str, str] | None = None
    ) -> str:
        """Submit; the job's id. `script` is a path, or the script itself (it starts with `#!`).

        `args` that begin with `-` and stand first are sbatch's, the rest the script's.
        """
        text = str(script) if str(script).startswith("#!") else None
        split = next((i for i, arg in enumerate(args) if not str(arg).startswith("-")), len(args))
        options, rest = [str(arg) for arg in args[:split]], [str(arg) for arg in args[split:]]
        if text is not None:
            assert not rest, "a script from standard input takes no arguments"
        command = ["sbatch", "--parsable", *options, *([] if text else [str(script)]), *rest]
        environ = {**self.env, **(env or {})}
        done = subprocess.run(command, cwd=cwd, env=environ, input=text, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
        return done.stdout.strip().split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says (`JobState`, `ExitCode`, `Restarts`, `NodeList`, `StdOut`, ...).

        Of an array or a heterogeneous job the first element or component; `jobs` has all.
        """
        return self.jobs(job_id)[0]

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """`job` of every array element or component."""
        lines = self.run("scontrol", "show", "job", "-o", job_id).stdout.splitlines()
        pairs = [re.findall(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s[A-Z][\w:/]*=|$)", line) for line in lines if line]
        return [{name: value.strip() for name, value in line} for line in pairs]

    def wait(self, job_id: str, states: str | Collection[str] = ENDED, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job (every element of an array) is in one of `states`; `job` of it.

        AssertionError with the job's output and the daemons' logs past `timeout_s`, or when it has ended otherwise.
        """
        wanted = (states,) if isinstance(states, str) else tuple(states)
        deadline = time.monotonic() + timeout_s
        while True:
            jobs = self.jobs(job_id)
            if all(job["JobState"] in wanted for job in jobs):
                return jobs[0]
            ended = [job for job in jobs if job["JobState"] in ENDED and job["JobState"] not in wanted]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"job {job_id} is not {'/'.join(wanted)}: {self.describe(job_id)}")
            time.sleep(POLL_S)

    def wait_restart(self, job_id: str, restarts: int = 1, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job has been started again `restarts` times and runs or has ended."""
        deadline = time.monotonic() + timeout_s
        while int((job := self.job(job_id))["Restarts"]) < restarts or job["JobState"] not in ("RUNNING", *ENDED):
            assert time.monotonic() < deadline, f"job {job_id} has not restarted: {self.describe(job_id)}"
            time.sleep(POLL_S)
        return job

    def output(self, job_id: str) -> str:
        """What the job has written so far, stdout and stderr."""
        job = self.job(job_id)
        files = dict.fromkeys(Path(job[name]) for name in ("StdOut", "StdErr") if job.get(name))
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def wait_output(self, job_id: str, text: str, timeout_s: float = 120, count: int = 1) -> str:
        """Wait until the job has written `text` (`count` times); `output` then."""
        deadline = time.monotonic() + timeout_s
        while (output := self.output(job_id)).count(text) < count:
            if time.monotonic() > deadline or self.job(job_id)["JobState"] in ENDED:
                assert self.output(job_id).count(text) >= count, f"{text!r} is missing: {self.describe(job_id)}"
            time.sleep(POLL_S)
        return output

    def describe(self, job_id: str) -> str:
        """State and output of a job, and the daemons' logs, for the message of a failure."""
        jobs = "\n".join(str(job) for job in self.jobs(job_id))
        return f"{jobs}\n== output of {job_id}\n{self.output(job_id)[-5000:]}\n{self.logs()}"

    def tasks_of(self, job_id: str) -> dict[int, int]:
        """Process number of each rank of the job's steps (the process that srun started, not its children)."""
        tasks: dict[int, int] = {}
        for pid in processes.every():
            environ = processes.environ(pid)
            if environ.get("SLURM_CONF") != str(self.conf) or environ.get("SLURM_JOB_ID") != job_id:
                continue
            # The batch script has a rank, too, but no step.
            started_by_srun = processes.name(processes.parent(pid)) == "slurmstepd" and "SLURM_STEP_ID" in environ
            if started_by_srun and "SLURM_PROCID" in environ:
                tasks[int(environ["SLURM_PROCID"])] = pid
        return dict(sorted(tasks.items()))

    def wait_tasks(self, job_id: str, n: int, timeout_s: float = 60) -> dict[int, int]:
        """`tasks_of` as soon as there are `n`."""
        deadline = time.monotonic() + timeout_s
        while len(tasks := self.tasks_of(job_id)) < n:
            assert time.monotonic() < deadline, f"{len(tasks)} of {n} tasks: {self.describe(job_id)}"
            time.sleep(POLL_S)
        return tasks

    def nodes_of(self, job_id: str) -> list[str]:
        """Names of the nodes on which the job runs or ran."""
        return self.run("scontrol", "show", "hostnames", self.job(job_id)["NodeList"]).stdout.split()

    def down(self, node: str) -> None:
        """A node is lost: SLURM kills its steps and requeues its jobs."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=testbed")

    def resume(self, node: str) -> None:
        """The node is back."""
        self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def clear(self, keep: Collection[str] = ()) -> None:
        """Cancel all jobs but `keep`, and bring every node back."""
        jobs = [job for job in self.queued() if job not in keep]
        if jobs:
            self.run("scancel", *jobs, check=False)
        for line in self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.splitlines():
            node, state = line.split()
            if state.startswith(("down", "drain")):
                self.resume(node)

    def queued(self) -> set[str]:
        """Ids of the jobs that wait or run."""
        return set(self.run("squeue", "-h", "-o", "%A").stdout.split())


def _environment(conf: Path) -> dict[str, str]:
    """This process's, without what another SLURM or MPI job left in it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "PMI"))}
    env["SLURM_CONF"] = str(conf)
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["PROMPTIST_PYTHON"] = sys.executable
    env["PYTHONPATH"] = str(REPOSITORY)
    return env


def _version() -> tuple[int, ...]:
    """(22, 5, 8) of `slurm-wlm 22.05.8`."""
    text = subprocess.run(["slurmctld", "-V"], capture_output=True, text=True, check=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _free_ports(n: int) -> list[int]:
    """Ports of `PORTS` on which nobody listens."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(PORTS, 2000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == n:
            return ports
    raise UserError(f"no free ports for a SLURM testbed between {PORTS.start} and {PORTS.stop}")


def _tail(file: Path, lines: int) -> str:
    return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.cluster.testbed", description="A throw-away SLURM on this host.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="start it; prints the environment to source")
    up.add_argument("folder", type=Path)
    up.add_argument("--nodes", type=int, default=4)
    up.add_argument("--gpus-per-node", type=int, default=8)
    down = verbs.add_parser("down", help="end its jobs and daemons; the logs stay")
    down.add_argument("folder", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.verb == "down":
        cluster = Cluster(arguments.folder)
        if not cluster.conf.exists():
            raise UserError(f"{arguments.folder}: no SLURM testbed")
        cluster.stop()
        return 0
    cluster = Cluster(arguments.folder, arguments.nodes, arguments.gpus_per_node)
    cluster.start()
    print(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
