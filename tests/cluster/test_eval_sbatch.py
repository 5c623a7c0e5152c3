"""`sbatch slurm/eval.sbatch`: the shards as an array, then the reducer, against the evaluation in one process."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cluster.testbed import Cluster
from tests.conftest import run_command
from tests.helpers_evaluation import make_tiny_evaluation

TIMEOUT_S = 300  # of what takes half a minute when the machine is free


def test_array_of_shards_and_reducer(slurm: Cluster, tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    config = make_tiny_evaluation(tmp_path, tiny_tokenizer_folder, prompts=5)
    options = ("--array=1-2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=30", f"--output={tmp_path}/%a.out")
    job = slurm.sbatch("slurm/eval.sbatch", *options, config)
    slurm.wait(job, "COMPLETED", TIMEOUT_S)
    evaluate = [sys.executable, "-m", "jobs.evaluate", str(config)]
    run_command([*evaluate, "reduce=2"], TIMEOUT_S).ok()
    run_command([*evaluate, "run.name=whole"], TIMEOUT_S).ok()
    sharded, whole = (tmp_path / "runs" / name / "measurements.parquet" for name in ("tiny-eval", "whole"))
    assert sharded.read_bytes() == whole.read_bytes()
    assert (sharded.parent / "report.html").exists()
