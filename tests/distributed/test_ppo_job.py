"""The PPO job as users start it, in a tiny random world: one process, mpirun, deaths, resumes, bad input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from promptist.rl.records import read_rollouts
from tests.conftest import Finished, Mpirun, run_command
from tests.helpers_ppo import deterministic, make_tiny_job

pytestmark = pytest.mark.distributed

ENDS = """
import os, signal, sys
from promptist.cluster.metrics import MetricLog
log = MetricLog.log
def end(self, step, metrics):
    log(self, step, metrics)
    if step == {step}:
        os.kill(os.getpid(), signal.{signal})
MetricLog.log = end
from promptist.errors import run_main
from jobs.ppo import main
sys.exit(run_main(main))
"""
"""The job, with every training rank sending itself a signal when it has logged `step`."""

REFERENCE = """
import sys, torch
from promptist.models.policy import load_reference
from promptist.rl import trainer
finish = trainer.finish
def check(nets, job, *rest):
    sft = load_reference(job.model).state_dict()
    assert all(torch.equal(sft[k], v) for k, v in nets.reference.state_dict().items()), "the reference moved"
    assert not all(torch.equal(sft[k], v) for k, v in nets.policy.module.state_dict().items()), "no training"
    print("reference checked")
    finish(nets, job, *rest)
trainer.finish = check
from promptist.errors import run_main
from jobs.ppo import main
sys.exit(run_main(main))
"""

REWARD_DIES = """
import os, signal, sys
from promptist.reward.model import RewardModel
RewardModel.measure = lambda self, requests: os.kill(os.getpid(), signal.SIGKILL)
from promptist.errors import run_main
from jobs.ppo import main
sys.exit(run_main(main))
"""


def tiny(folder: Path, stage: int = 1) -> Path:
    return make_tiny_job(folder, zero={"stage": stage}, ppo={"iterations": 4}, run={"name": "a"})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job's config."""
    return tiny(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def undisturbed(world: Path, mpirun: Mpirun) -> Callable[[int], Path]:
    """`undisturbed(stage) -> run folder`: two training ranks and one reward rank, nothing happens."""
    runs: dict[int, Path] = {}

    def get(stage: int) -> Path:
        if stage not in runs:
            mpirun(3, "jobs.ppo", [world, f"run.name=calm{stage}", f"zero.stage={stage}"], timeout_s=400).ok()
            runs[stage] = world.parent / "runs" / f"calm{stage}"
        return runs[stage]

    return get


def alone(source: str, *args: object) -> Finished:
    """Python source or module in one process without mpirun."""
    target = ["-c", source] if "\n" in source else ["-m", source]
    return run_command([sys.executable, *target, *map(str, args)], timeout_s=400)


def tensors(folder: Path) -> dict[str, Any]:
    """Every tensor of the engine files below a checkpoint folder."""
    found: dict[str, Any] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, torch.Tensor):
            # Where a ZeRO-3 group does not divide by two ranks, DeepSpeed fills up with uninitialised memory.
            found[name] = node[:-1] if "fp32_flat_groups" in name else node
        elif isinstance(node, dict):
            for k, v in node.items():
                walk(v, f"{name}.{k}")
        elif isinstance(node, (list, tuple)):
            for i, v in enumerate(node):
                walk(v, f"{name}.{i}")

    for path in sorted(folder.rglob("*.pt")):
        walk(torch.load(path, map_location="cpu", weights_only=False), path.relative_to(folder).as_posix())
    return found


def assert_same_run(a: Path, b: Path) -> None:
    """Metrics, final weights and both networks' optimisers, bit by bit."""
    assert deterministic(a) == deterministic(b)
    for export in ("export", "export-best"):
        name = f"{export}/model.safetensors"
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = tensors(a / "checkpoints" / "step_000004"), tensors(b / "checkpoints" / "step_000004")
    assert left.keys() == right.keys()
    assert len(left) > 20
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


@pytest.mark.parametrize("stage", [1, 3])
def test_a_run_killed_between_checkpoints_ends_with_the_weights_of_an_undisturbed_one(
    stage: int, world: Path, undisturbed: Callable[[int], Path], mpirun: Mpirun
) -> None:
    """With ZeRO 1 the second attempt also has another number of reward ranks: no number may change."""
    args = [world, f"run.name=killed{stage}", f"zero.stage={stage}"]
    died = mpirun(3, ENDS.format(step=3, signal="SIGKILL"), args, timeout_s=400)
    run = world.parent / "runs" / f"killed{stage}"
    assert died.returncode != 0
    assert not (run / "done.json").exists()
    assert (run / "checkpoints" / "step_000002" / "complete.json").exists()
    assert not (run / "checkpoints" / "step_000003").exists()
    more = ["roles.reward_per_node=2"] if stage == 1 else []
    mpirun(3 + len(more), "jobs.ppo", args + more, timeout_s=400).ok()
    assert_same_run(run, undisturbed(stage))


def test_the_undisturbed_run(undisturbed: Callable[[int], Path]) -> None:
    run = undisturbed(1)
    metrics = deterministic(run)
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4]
    # Log-probabilities come from the update's own forward pass: exactly, not nearly.
    assert [line["ratio_error"] for line in metrics[1:]] == [0.0] * 4
    # Policy and reference are the same model before the first update, and no longer after it.
    assert metrics[1]["kl"] == 0.0
    assert metrics[2]["kl"] != 0.0
    # data.valid names five prompts, one of them twice, and two ranks share them.
    assert [line["valid/prompts"] for line in metrics if "valid/prompts" in line] == [5, 5, 5]
    rollouts = read_rollouts(run / "rollouts" / "step_000002.parquet")
    assert [r.row for r in rollouts] == list(range(8))
    assert all(len(r.response_ids) == len(r.logprobs) == len(r.ref_logprobs) == len(r.values) for r in rollouts)
    assert metrics[2]["kl"] == pytest.approx(sum(r.kl for r in rollouts) / 8)
    kept = [r for r in rollouts if r.picture_y]
    assert [r.row for r in kept] == [0, 1]
    assert all((run / str(r.picture_y)).exists() and (run / str(r.picture_x)).exists() for r in kept)


def test_one_process_and_two_give_the_same_numbers_and_a_signal_costs_nothing(world: Path, mpirun: Mpirun) -> None:
    """One process, told to stop after its first iteration and started again, against mpirun -n 2."""
    runs = world.parent / "runs"
    stopped = alone(ENDS.format(step=1, signal="SIGUSR2"), world, "run.name=alone").ok()
    assert "stopped by a signal after iteration 1" in stopped.stderr
    assert not (runs / "alone" / "done.json").exists()
    assert "reference checked" in alone(REFERENCE, world, "run.name=alone").ok().stdout
    mpirun(2, "jobs.ppo", [world, "run.name=pair"], timeout_s=400).ok()
    assert_same_run(runs / "alone", runs / "pair")
    assert "is finished" in alone("jobs.ppo", world, "run.name=alone").ok().stdout


def test_a_dead_reward_rank_ends_the_world(world: Path, mpirun: Mpirun) -> None:
    start = time.monotonic()
    died = mpirun(2, REWARD_DIES, [world, "run.name=dead"], timeout_s=300)
    assert died.returncode != 0
    assert time.monotonic() - start < 240
    assert not list((world.parent / "runs" / "dead" / "checkpoints").iterdir())


def test_several_processes_without_a_reward_rank_are_refused(world: Path, mpirun: Mpirun) -> None:
    ended = mpirun(2, "jobs.ppo", [world, "roles.reward_per_node=null", "run.name=none"])
    assert ended.returncode == 64
    assert "no reward rank" in ended.stderr


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("ppo.batch=7", "zero.micro_batch = 2 does not divide"),
        ("data.prompts=[{path: EMPTY}]", "holds no prompt"),
        ("model.path=/nowhere/policy", "does not exist"),
        ("data.max_prompt_tokens=60", "positions"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_64(world: Path, override: str, sentence: str) -> None:
    empty = world.parent / "empty.txt"
    empty.write_text("", encoding="utf-8")
    ended = alone("jobs.ppo", world, "run.name=bad", override.replace("EMPTY", str(empty)))
    assert ended.returncode == 64, ended.stderr
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_resumed_run_refuses_another_kl_coefficient(world: Path, undisturbed: Callable[[int], Path]) -> None:
    run = undisturbed(1)
    ended = alone("jobs.ppo", world, f"run.name={run.name}", "ppo.kl_coef=0.3")
    assert ended.returncode == 64
    assert "ppo.kl_coef was 0.2 and is now 0.3" in ended.stderr
