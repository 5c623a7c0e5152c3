"""`promptist demo`: the whole system on the miniature world: prompts, SFT, PPO, evaluation, page.

Each step is the command a user would type, run as its own MPI job and printed before it starts; a finished step is not
done again, a stopped one goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from promptist.errors import UserError

CONFIGS = Path("configs/demo")
WORLD = Path("runs/demo-world")
NEWEST_PARTS = ("prompts/test.jsonl", "rival")
"""A world without them was unpacked by an earlier version; to unpack it again changes nothing else."""
# Two cores: SFT and evaluation use both for the same work. In PPO two ranks paint and one trains: painting takes most
# of an iteration, and while both cores paint the training rank waits. The three share the cores for the rest.
RANKS = {"sft": 2, "ppo": 3, "evaluate": 2}
PAINTERS = 2


def run(argv: Sequence[str]) -> int:
    """Entry of `promptist demo`."""
    parser = argparse.ArgumentParser(
        prog="promptist demo", description="Train a prompt optimiser in the miniature world, end to end."
    )
    parser.add_argument("--seed", type=int, default=0, help="of SFT and PPO; another seed gets run folders of its own")
    options = parser.parse_args(list(argv))
    if not CONFIGS.is_dir():
        raise UserError(f"{CONFIGS} is not here: run `promptist demo` in the repository's top folder")
    began = time.monotonic()
    if not all((WORLD / part).exists() for part in NEWEST_PARTS):
        from promptist.synthetic.world import unpack

        print(f"== the miniature world goes to {WORLD}", flush=True)
        unpack(WORLD)
    sft, ppo, evaluation = (run_of(f"demo-{job}", options.seed) for job in ("sft", "ppo", "eval"))
    launch("sft", CONFIGS / "sft.yaml", [f"run.name={sft.name}", f"run.seed={options.seed}"])
    launch(
        "ppo",
        CONFIGS / "ppo.yaml",
        [
            f"run.name={ppo.name}",
            f"run.seed={options.seed}",
            f"model.path={sft / 'export'}",
            f"roles.reward_per_node={PAINTERS}",
        ],
    )
    launch("evaluate", CONFIGS / "eval.yaml", [f"run.name={evaluation.name}", *models(sft, ppo)])
    print(f"\n== done in {(time.monotonic() - began) / 60:.1f} minutes")
    print((evaluation / "results.md").read_text())
    print(f"Open {evaluation / 'report.html'} in a browser: what was learnt, in pictures.")
    print('Try it:  .venv/bin/promptist optimize "a red boat on the beach"')
    return 0


def run_of(kind: str, seed: int) -> Path:
    """The run folder of a kind of run (`demo-sft`) with a training seed."""
    return Path("runs", kind + (f"-seed{seed}" if seed else ""))


def models(sft: Path, ppo: Path) -> list[str]:
    """Where the models of configs/demo/eval.yaml lie, as overrides."""
    from jobs.evaluate import EvalJob
    from promptist.config import load

    paths = {"sft": sft, "sft-best": sft / "export-best", "ppo": ppo}
    rows = load(EvalJob, CONFIGS / "eval.yaml").methods
    found = [f"methods.{i}.path={paths[row.name]}" for i, row in enumerate(rows) if row.name in paths]
    return [*found, f"reference={sft / 'export'}"]


def launch(job: str, config: Path, overrides: list[str]) -> None:
    """Runs one job under mpirun; UserError with its exit code where it fails on bad input, else SystemExit."""
    mpirun = Path(sys.executable).with_name("mpirun")
    found = str(mpirun) if mpirun.exists() else shutil.which("mpirun")
    if found is None:
        raise UserError(
            "no mpirun found: install one with `pip install promptist[local]` or load your cluster's MPI module"
        )
    command = [
        found,
        "-n",
        str(RANKS[job]),
        sys.executable,
        "-m",
        "mpi4py",
        "-m",
        f"jobs.{job}",
        str(config),
        *overrides,
    ]
    print(f"\n== {shlex.join(command)}", flush=True)
    # Two ranks with two threads each on two cores would spend their time waiting for each other.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        print(
            f"error: the {job} job ended with exit code {code}; "
            "the same `promptist demo` goes on from its last checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(code)
