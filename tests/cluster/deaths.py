"""What a run survives, on a real scheduler: `python -m tests.cluster.deaths [--out docs/deaths.md]` dies every death
with every sort of job and every ZeRO stage (pairwise) and writes a table; the fast subset of it is test_deaths.py.

Each case submits `slurm/JOB.sbatch` on a throw-away SLURM, lets it die, and demands: the last whole checkpoint before
the death is the one (or the one before it, where it was damaged) that the next start goes on from; the run ends by
itself within its time-out; its weights and metrics equal, bit by bit, those of a run that nothing disturbed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptist.cluster import checkpoint
from promptist.cluster.attempts import Attempt, read
from promptist.errors import run_main
from tests.cluster.testbed import REPOSITORY, Cluster
from tests.conftest import run_command
from tests.distributed.test_sft import metrics as sft_metrics
from tests.distributed.test_sft import write_config as write_sft
from tests.helpers_miniature import steps, wait_for
from tests.helpers_ppo import deterministic, make_tiny_job
from tests.helpers_text import train_byte_level_bpe

JOBS, STAGES = ("sft", "ppo"), (1, 2, 3)
DEATHS = (
    "training rank killed",
    "reward rank killed",
    "killed in a save: files written",
    "killed in a save: before the rename",
    "killed in a save: after the rename",
    "node DOWN",
    "preempted",
    "time limit",
    "disk full while saving",
    "truncated shard",
)
PAUSE, SAVE = 3, 4
"""Deaths happen after step 3, one step after a checkpoint, or while the next one is saved."""
TIMEOUT_S = 300.0
"""No start, end or restart takes longer (on a machine that does nothing else, a tenth of it); else the case failed."""

UNDISTURBED = """
import importlib, sys
from promptist.errors import run_main
job, config, *stages = sys.argv[1:]
def main(argv):
    for stage in stages:
        code = importlib.import_module(f"jobs.{job}").main([config, f"run.name=calm{stage}", f"zero.stage={stage}"])
        assert code == 0, code
sys.exit(run_main(main))
"""


HEAD = """# What a run survives

    python -m tests.cluster.deaths --out docs/deaths.md

(root; the packages slurm-wlm and munge) dies every death with every sort of job and every ZeRO stage, pairwise, on a
throw-away SLURM, and writes this page. Every run in the table ended with the weights and metrics, bit by bit, of one
that nothing disturbed, and no whole checkpoint was lost. Recovery is the time from the death to the first new step of
the next start: here mostly the start of three Python processes on {cores} cores ({cpu}), and six seconds for which
SLURM holds back a job that it queues again (two minutes where `AuthInfo` does not say otherwise). That of the time
limit contains the wait for the limit. A rank that is told to end because another died (SIGTERM by
`srun --kill-on-bad-exit`) still saves where it can: hence starts that go on from step 3, although checkpoints stand
every two steps.

"""


@dataclass(frozen=True)
class Case:
    job: str
    stage: int
    death: str


@dataclass(frozen=True)
class Outcome:
    """`happened` in words; seconds from the death to the first new step of the next start."""

    happened: str
    recovery_s: float


def pairwise() -> list[Case]:
    """Every pair of job, stage and death, in as few cases as a greedy choice finds."""
    every = [Case(*c) for c in itertools.product(JOBS, STAGES, DEATHS) if "reward" not in c[2] or c[0] == "ppo"]
    open_pairs = {pair for case in every for pair in _pairs(case)}
    chosen: list[Case] = []
    while open_pairs:
        best = max(every, key=lambda case: len(open_pairs & _pairs(case)))
        open_pairs -= _pairs(best)
        chosen.append(best)
    return sorted(chosen, key=lambda c: (DEATHS.index(c.death), c.job, c.stage))


def _pairs(case: Case) -> set[tuple[object, ...]]:
    return {(case.job, case.stage), (case.job, case.death), (case.stage, case.death)}


class Bench:
    """Tiny jobs below `folder` and a cluster to kill them on."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        tokenizer = folder / "tokenizer"
        text = "a red boat on the sea Rephrase: a red boat, oil painting, detailed"
        train_byte_level_bpe([text] * 4).save_pretrained(tokenizer)
        steps_of = {"iterations": 6, "validate_every": 3, "keep_rollouts": False}
        self.configs = {
            "ppo": make_tiny_job(folder / "ppo", ppo=steps_of, logging={"samples_every": 0}),
            "sft": write_sft(_made(folder / "sft"), tokenizer),
        }
        self._calm: set[tuple[str, int]] = set()

    def undisturbed(self, job: str, stages: Sequence[int] = STAGES) -> None:
        """Runs that nothing disturbs, under mpirun, with as many ranks of each role as on the cluster."""
        missing = [str(stage) for stage in stages if (job, stage) not in self._calm]
        if not missing:
            return
        script = self.folder / "undisturbed.py"
        script.write_text(UNDISTURBED, encoding="utf-8")
        start = [str(Path(sys.executable).with_name("mpirun")), "-n", str(_ranks(job)), sys.executable, "-m", "mpi4py"]
        run_command([*start, str(script), job, str(self.configs[job]), *missing], 2 * TIMEOUT_S).ok()
        self._calm |= {(job, int(stage)) for stage in missing}

    def run(self, case: Case) -> Outcome:
        """Die and recover; AssertionError where anything is not as demanded."""
        self.undisturbed(case.job, [case.stage])
        with self._root(case) as root:
            return _Run(self, case, root).live()

    @contextmanager
    def _root(self, case: Case) -> Iterator[Path]:
        """Where the run folder goes: a small file system of its own where the disk is to be full."""
        if "disk full" not in case.death:
            yield self.configs[case.job].parent / "runs"
            return
        root = _made(self.folder / f"small-{case.job}{case.stage}")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(root)], check=True)
        try:
            yield root
        finally:
            subprocess.run(["umount", "-l", str(root)], check=True)


class _Run:
    """One run that dies."""

    def __init__(self, bench: Bench, case: Case, root: Path) -> None:
        self.cluster, self.case = bench.cluster, case
        name = f"{DEATHS.index(case.death)}-{case.stage}"
        self.path, self.calm = root / name, bench.configs[case.job].parent / "runs" / f"calm{case.stage}"
        minutes = 2 if case.death == "time limit" else 30
        self.command = [
            f"--nodes={_ranks(case.job)}", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1",
            f"--time={minutes}", "--signal=USR2@60", f"--output={bench.folder}/{case.job}-{name}.out",
            bench.configs[case.job], f"run.root={root}", f"run.name={name}", f"zero.stage={case.stage}",
            *(["roles.reward_per_node=null", "roles.reward_nodes=1"] if case.job == "ppo" else []),
        ]  # fmt: skip
        inject = Path(__file__).parent / "inject"
        moment = {"files": "files written", "record": "before the rename", "renamed": "after the rename"}
        save = next((name for name, words in moment.items() if case.death.endswith(words)), None)
        pause = SAVE + 1 if case.death == "truncated shard" else PAUSE
        self.environ = {
            "PYTHONPATH": os.pathsep.join([str(inject), str(REPOSITORY)]),
            "PROMPTIST_DEATH": f"save:{save}:{SAVE}" if save else f"pause:{pause}",
        }

    def live(self) -> Outcome:
        """To the end of the run."""
        self.job = self._submit()
        self._wait(lambda: (self.path / "reached").exists())
        whole, died_at = self._whole(), time.monotonic()
        starts, logs = len(read(self.path)), len(list((self.path / "logs").iterdir()))
        self._die()
        self._wait(lambda: len(read(self.path)) > starts)
        goes_on = read(self.path)[starts].from_step
        self._wait(lambda: self._has_gone_on(self.path / "logs" / f"attempt_{logs + 1}", goes_on))
        recovery_s = time.monotonic() - died_at
        self.cluster.wait(self.job, "COMPLETED", TIMEOUT_S)
        first = read(self.path)[starts - 1]
        if self.case.death == "truncated shard":
            assert whole[0] == SAVE and goes_on == whole[1], (whole, goes_on)
        else:  # a rank that is told to end by the death of another may still save the start of its iteration
            assert goes_on is not None and goes_on >= max([0, *whole]) and first.step in (None, goes_on), first
        self._compare()
        return Outcome(f"{_said(self.case, first)}; goes on from step {goes_on}", recovery_s)

    def _has_gone_on(self, logs: Path, goes_on: int | None) -> bool:
        """Whether the next start has logged a step of its own; what the one before it logged is cut back first."""
        metrics = self.path / "metrics.jsonl"
        if not logs.exists() or metrics.stat().st_mtime < (logs / "00000.log").stat().st_ctime:
            return False
        return max(steps(self.path), default=0) > (goes_on or 0)

    def _die(self) -> None:
        """Let it happen. Other deaths come by themselves: at the chosen moment, or at the time limit."""
        death, ranks = self.case.death, _ranks(self.case.job)
        if death in ("training rank killed", "truncated shard"):
            os.kill(self.cluster.wait_tasks(self.job, ranks)[1], signal.SIGKILL)
            if death == "truncated shard":
                self._wait(lambda: self.cluster.job(self.job)["JobState"] == "PENDING")
                shard = max(checkpoint.path_of(self.path / "checkpoints", SAVE).rglob("*.pt"))
                os.truncate(shard, shard.stat().st_size // 2)
        elif death == "reward rank killed":
            os.kill(self.cluster.wait_tasks(self.job, ranks)[ranks - 1], signal.SIGKILL)
        elif death == "node DOWN":
            node = self.cluster.nodes_of(self.job)[-1]
            self.cluster.down(node)
            self._wait(lambda: self.cluster.job(self.job)["JobState"] == "PENDING")
            self.cluster.resume(node)
        elif death == "preempted":
            script = "#!/bin/bash\nsleep 1"
            self.cluster.sbatch(script, "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null")
        elif death == "disk full while saving":
            free = os.statvfs(self.path)
            ballast = self.path.parent / "ballast"
            ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 100_000))
            os.kill(self.cluster.wait_tasks(self.job, ranks)[0], signal.SIGUSR2)  # it saves
            # The record of the attempt finds no room either: SLURM's own word counts.
            ended = self.cluster.wait(self.job, "FAILED", TIMEOUT_S)
            assert (ended["ExitCode"], ended["Restarts"]) == ("64:0", "0"), self.cluster.describe(self.job)
            assert "the disk is full" in self.cluster.output(self.job)
            ballast.unlink()
            self.environ.pop("PROMPTIST_DEATH")
            self.job = self._submit()

    def _submit(self) -> str:
        return self.cluster.sbatch(f"slurm/{self.case.job}.sbatch", *self.command, env=self.environ)

    def _whole(self) -> list[int]:
        """Steps of the intact checkpoints, the newest first."""
        found = (self.path / "checkpoints").glob("step_" + "[0-9]" * 6)
        return sorted((checkpoint.step_of(path) for path in found if not checkpoint.flaw(path)), reverse=True)

    def _wait(self, condition: Callable[[], bool]) -> None:
        wait_for(condition, TIMEOUT_S, lambda: f"{self.case}: {self.cluster.describe(self.job)}")

    def _compare(self) -> None:
        """Weights and metrics, bit by bit."""
        for export in ("export", "export-best"):
            name = f"{export}/model.safetensors"
            assert (self.path / name).read_bytes() == (self.calm / name).read_bytes(), (self.case, name)
        plain = sft_metrics if self.case.job == "sft" else deterministic
        assert plain(self.path) == plain(self.calm), self.case


def _said(case: Case, first: Attempt) -> str:
    if "disk full" in case.death:
        return "ends with a sentence (exit code 64), submitted again by hand"
    if first.outcome is None:
        return "SLURM itself queues the job again"
    return {"stopped": "saves, is queued again", "crashed": "ends, is queued again"}[first.outcome]


def _ranks(job: str) -> int:
    """Two that train, and for PPO one that paints: a node each."""
    return 3 if job == "ppo" else 2


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(outcomes: dict[Case, Outcome]) -> str:
    """Markdown."""
    lines = ["| death | job | ZeRO stage | what happened | recovery, s |", "| --- | --- | --- | --- | --- |"]
    for case, outcome in outcomes.items():
        seconds = f"{outcome.recovery_s:.0f}"
        lines.append(f"| {case.death} | {case.job} | {case.stage} | {outcome.happened} | {seconds} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Die every death; 0 if every run came through."""
    parser = argparse.ArgumentParser("python -m tests.cluster.deaths", description="What a run survives.")
    parser.add_argument("--out", type=Path, help="write the table there, too")
    parser.add_argument("--only", default="", help="deaths that contain these words")
    options = parser.parse_args(argv)
    os.chdir(REPOSITORY)
    outcomes, failed = {}, []
    with tempfile.TemporaryDirectory(prefix="deaths") as folder, Cluster(Path(folder) / "slurm") as cluster:
        bench = Bench(cluster, Path(folder))
        cases = [case for case in pairwise() if options.only in case.death]
        for number, case in enumerate(cases, 1):
            print(f"{number}/{len(cases)} {case.death}, {case.job}, ZeRO {case.stage}: ", end="", flush=True)
            try:
                outcomes[case] = bench.run(case)
                print(f"{outcomes[case].happened}, {outcomes[case].recovery_s:.0f} s", flush=True)
            except AssertionError as error:
                failed.append(case)
                print(f"FAILED: {error}", flush=True)
                cluster.clear()
    text = table(outcomes)
    print(text)
    if options.out is not None and not failed:
        options.out.write_text(HEAD.format(cpu=platform.machine(), cores=os.cpu_count()) + text, encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
