"""The paper's comparison in the miniature world, from training to report, with several training seeds.

    python -m benchmarks.miniature --seeds 0 1 2 3 4 [--workers 2] [--split validation]

For each seed SFT, PPO as the paper has it (both are the demo's runs) and PPO with the remedies, one process per run and
`--workers` seeds at a time; then one evaluation of them all (configs/miniature/eval.yaml) in as many shards. A finished
run is not done again and a stopped one goes on, so that the command can be given again until it ends with the report.
Choose settings by `--split validation`; the test split is opened once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.evaluate import EvalJob
from promptist.config import load
from promptist.demo import WORLD, run_of
from promptist.errors import UserError, run_main
from promptist.synthetic.world import unpack

LOGS = Path("runs/miniature-logs")
EVALUATION = "configs/miniature/eval.yaml"


def train(seed: int) -> None:
    """SFT, then both PPO runs of one seed."""
    sft = run_of("demo-sft", seed)
    _job("sft", "configs/demo/sft.yaml", sft, [f"run.seed={seed}"])
    for kind, config in (
        ("demo-ppo", "configs/demo/ppo.yaml"),
        ("mini-ppo-remedies", "configs/miniature/ppo-remedies.yaml"),
    ):
        options = [f"run.seed={seed}", f"model.path={sft / 'export'}", "roles.reward_per_node=null"]
        _job("ppo", config, run_of(kind, seed), options)


def evaluate(seeds: Sequence[int], split: str, shards: int) -> Path:
    """The evaluation of all trainings on a split; the path of its report."""
    kinds = {"sft": "demo-sft", "ppo": "demo-ppo", "ppo-remedies": "mini-ppo-remedies"}
    rows = load(EvalJob, Path(EVALUATION)).methods
    options = [
        f"methods.{i}.paths=[{','.join(str(run_of(kinds[row.name], seed)) for seed in seeds)}]"
        for i, row in enumerate(rows)
        if row.name in kinds
    ]
    options.append(f"reference=[{','.join(str(run_of('demo-sft', seed) / 'export') for seed in seeds)}]")
    options.append(f"prompts={WORLD}/prompts/{split}.jsonl")
    run = run_of(f"mini-eval-{split}", 0)

    def shard(number: int) -> None:
        _job("evaluate", EVALUATION, run, [*options, f"shard={number}/{shards}"], f"{run.name}-{number}")

    with ThreadPoolExecutor(shards) as pool:
        list(pool.map(shard, range(1, shards + 1)))
    _job("evaluate", EVALUATION, run, [*options, f"reduce={shards}"], f"{run.name}-reduce")
    return run / "report.html"


def _job(job: str, config: str, run: Path, options: list[str], name: str = "") -> None:
    """Run one job to its end, output to LOGS/NAME.log; UserError where it fails."""
    if job != "evaluate" and (run / "done.json").exists():
        return
    command = [sys.executable, "-m", f"jobs.{job}", config, f"run.name={run.name}", *options]
    log = LOGS / f"{name or run.name}.log"
    print(f"== {shlex.join(command[1:])}  > {log}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        code = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=environment).returncode
    if code:
        raise UserError(f"{run} ended with exit code {code}: read {log}, then give the same command again")
    print(f"   {name or run.name}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def main(argv: list[str]) -> int:
    """Train and evaluate what is missing."""
    parser = argparse.ArgumentParser("python -m benchmarks.miniature", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="training seeds (0 1 2 3 4)")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="prompts to evaluate on (test)")
    parser.add_argument("--only-train", action="store_true", help="do not evaluate")
    options = parser.parse_args(argv)
    LOGS.mkdir(parents=True, exist_ok=True)
    if not (WORLD / "prompts/test.jsonl").exists():
        unpack(WORLD)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(train, options.seeds))
    if not options.only_train:
        print(evaluate(options.seeds, options.split, options.workers))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
