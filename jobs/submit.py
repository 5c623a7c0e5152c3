"""Submit jobs to SLURM, or run them on this machine:

    python -m jobs.submit sft|ppo CONFIG [key=value ...] [--sweep key=value,value ...]
    python -m jobs.submit eval CONFIG [key=value ...] [--shards N]
    python -m jobs.submit pipeline --sft CONFIG --ppo CONFIG --eval CONFIG [ppo:key=value ...] [--shards N]

each with `--cluster FILE` (configs/cluster/example.yaml says what it holds; `cluster.ppo.nodes=2` overrides a value),
`--dry-run` to see what would be submitted, `--local` to run it here. Everything is checked first. `sft`, `ppo`,
`evaluation` and `pipeline` do the same from Python and return submitit's jobs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.plans import Stage, plan_evaluation, plan_pipeline, plan_training
from promptist import config as configs
from promptist.cluster.local import mpirun, run_here
from promptist.cluster.site import ClusterConfig, load_site
from promptist.cluster.submission import MODULES, parent_ids, submit
from promptist.errors import UserError, run_main

CLUSTER = "PROMPTIST_CLUSTER"
"""Environment variable: the cluster config where `--cluster` names none."""


def sft(
    config: str | Path, overrides: Sequence[str] = (), *, site: ClusterConfig, sweep: Sequence[str] = (),
    local: bool = False,
) -> list[Any]:  # fmt: skip
    """Submit the SFT run of a config, or an array of runs; their jobs. `sweep`: `run.seed=1,2`, ... UserError where a
    check fails, and nothing is submitted."""
    return _flat(start(plan_training("sft", Path(config), overrides, site, sweep), local))


def ppo(
    config: str | Path, overrides: Sequence[str] = (), *, site: ClusterConfig, sweep: Sequence[str] = (),
    local: bool = False,
) -> list[Any]:  # fmt: skip
    """As `sft`, for PPO."""
    return _flat(start(plan_training("ppo", Path(config), overrides, site, sweep), local))


def evaluation(
    config: str | Path, overrides: Sequence[str] = (), *, site: ClusterConfig, shards: int = 1, local: bool = False
) -> list[Any]:
    """Submit an evaluation; its jobs, with several shards the reducer's last."""
    return _flat(start(plan_evaluation(Path(config), overrides, site, shards), local))


def pipeline(
    sft: str | Path, ppo: str | Path, evaluation: str | Path, overrides: Sequence[str] = (), *, site: ClusterConfig,
    shards: int = 1, local: bool = False,
) -> dict[str, list[Any]]:  # fmt: skip
    """Submit SFT, PPO from its export and the evaluation of both; the jobs of sft, ppo, eval and (with several shards)
    reduce. Each stage waits for the one before it, and is cancelled if that one fails."""
    stages = plan_pipeline(Path(sft), Path(ppo), Path(evaluation), overrides, site, shards)
    return {stage.kind: jobs for stage, jobs in zip(stages, start(stages, local), strict=True)}


def start(stages: Sequence[Stage], local: bool = False) -> list[list[Any]]:
    """Submit stages, each after the one before it; submitit's jobs of each. `local`: run them here, to their ends.

    Where SLURM refuses one, those before it are cancelled.
    """
    if local:
        return [list(run_here(stage.submission, stage.train_ranks)) for stage in stages]
    started: list[list[Any]] = []
    try:
        for stage in stages:
            started.append(submit(stage.submission, parent_ids(started[-1]) if started else ()))
    except BaseException:
        for job in parent_ids([job for jobs in started for job in jobs]):
            _cancel(job)
        raise
    return started


def describe(stages: Sequence[Stage], local: bool = False) -> str:
    """What a dry run shows: for each stage ranks by role, GPU-hours, batch script and config."""
    parts: list[str] = []
    for number, stage in enumerate(stages):
        submission = stage.submission
        works = submission.works
        after = [f"{stages[number - 1].kind}-job"] if number else []
        runs = list(dict.fromkeys(str(work.run) for work in works))
        parts.append(f"== {stage.kind}: {', '.join(runs)}\n{_size(stage)}")
        if local:
            parts += [shlex.join(_local_command(stage, work)) for work in works]
        else:
            parts.append(f"-- {submission.script}\n{submission.text(after)}")
        if stage.kind != "reduce":  # reads the shards' config
            first = configs.to_yaml(works[0].job)
            parts.append(f"-- {works[0].config}\n{first}")
            for work in works[1:]:
                if work.run != works[0].run:
                    parts.append(f"-- {work.config}, as above but for\n{_changes(works[0].job, work.job)}")
    parts.append(f"In all at most {sum(stage.gpu_hours for stage in stages):g} GPU-hours. Nothing was submitted.")
    return "\n".join(parts)


def main(argv: list[str]) -> int:
    """Submit, run here or show what the command line asks for; 0 when that is done."""
    arguments = _parse(argv)
    site = _site(arguments)
    overrides = [text for text in arguments.overrides if not text.startswith("cluster.")]
    if arguments.job == "pipeline":
        files = (arguments.sft, arguments.ppo, arguments.eval)
        stages = plan_pipeline(*files, overrides, site, arguments.shards)
    elif arguments.job == "eval":
        stages = plan_evaluation(arguments.config, overrides, site, arguments.shards)
    else:
        stages = plan_training(arguments.job, arguments.config, overrides, site, arguments.sweep)
    if arguments.dry_run:
        print(describe(stages, arguments.local))
        return 0
    for stage, jobs in zip(stages, start(stages, arguments.local), strict=True):
        how = "done" if arguments.local else f"job {', '.join(job.job_id for job in jobs)}"
        print(f"{stage.kind}: {how}; {_size(stage)}; {stage.submission.folder}", flush=True)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="sft|ppo|eval|pipeline")
    for name in ("sft", "ppo", "eval", "pipeline"):
        one = jobs.add_parser(name)
        if name == "pipeline":
            for stage in ("sft", "ppo", "eval"):
                one.add_argument(f"--{stage}", type=Path, required=True, metavar="CONFIG")
        else:
            one.add_argument("config", type=Path, help="YAML file of the job")
        one.add_argument("overrides", nargs="*", metavar="key=value", help="of the job, or cluster.key=value")
        one.add_argument("--cluster", type=Path, metavar="FILE", help=f"the site (default: ${CLUSTER})")
        if name in ("sft", "ppo"):
            one.add_argument("--sweep", nargs="+", default=[], metavar="key=value,value", help="an array of runs; last")
        else:
            one.add_argument("--shards", type=int, default=1, metavar="N", help="of the evaluation, as an array")
        one.add_argument("--dry-run", action="store_true", help="show what would be submitted, and change nothing")
        one.add_argument("--local", action="store_true", help="run it on this machine, and wait")
    known, rest = parser.parse_known_args(argv)
    # Overrides may stand behind options, where argparse's subparsers no longer look for them.
    unknown = [text for text in rest if text.startswith("-") or "=" not in text]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    known.overrides = [*known.overrides, *rest]
    return known


def _site(arguments: argparse.Namespace) -> ClusterConfig:
    own = [text.removeprefix("cluster.") for text in arguments.overrides if text.startswith("cluster.")]
    path = arguments.cluster or os.environ.get(CLUSTER)
    if path is None:
        if arguments.local:
            return load_site(os.devnull, own)
        raise UserError(f"name the site's config by --cluster FILE or {CLUSTER}: copy configs/cluster/example.yaml")
    return load_site(path, own)


def _size(stage: Stage) -> str:
    """`32 ranks on 4 nodes: 16 train, 16 reward; at most 768 GPU-hours`."""
    submission = stage.submission
    nodes, ranks = sum(c.nodes for c in submission.components), sum(stage.roles.values())
    each = f"{len(submission.works)} tasks, each " if submission.is_array else ""
    names = {"both": "train and reward"}
    shares = ", ".join(f"{count} {names.get(role, role)}" for role, count in stage.roles.items())
    return f"{each}{_many(ranks, 'rank')} on {_many(nodes, 'node')}: {shares}; at most {stage.gpu_hours:g} GPU-hours"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _changes(first: Any, other: Any) -> str:
    values = configs.flatten(other)
    return "\n".join(f"{key}: {values.get(key)}" for key in configs.differences(first, other))


def _local_command(stage: Stage, work: Any) -> list[str]:
    ranks = sum(stage.roles.values())
    start = [mpirun(), "-n", str(ranks), sys.executable, "-m", "mpi4py"] if ranks > 1 else [sys.executable]
    return [*start, "-m", f"jobs.{MODULES[work.kind]}", str(work.config), *work.arguments]


def _flat(started: list[list[Any]]) -> list[Any]:
    return [job for jobs in started for job in jobs]


def _cancel(job: str) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["scancel", job], check=False, capture_output=True)


if __name__ == "__main__":
    sys.exit(run_main(main))
