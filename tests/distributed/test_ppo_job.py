"""The PPO job as users start it, in a tiny random world: one process, mpirun, deaths, resumes, bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from promptist.errors import EXIT_STOPPED
from promptist.rl.records import read_rollouts
from tests.conftest import Finished, Mpirun, run_command, run_one_after_the_other
from tests.helpers_ppo import deterministic, make_tiny_job

pytestmark = pytest.mark.distributed

TIMEOUT_S = 600
"""Ten times what the longest takes alone on two cores: machines are shared."""

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

STOPS_WHILE_WAITING = """
import os, signal, sys
from promptist.rl import trainer
enter, count = trainer.enter_measurements, 0
def end(*args):
    global count
    enter(*args)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGUSR2)
trainer.enter_measurements = end
from promptist.errors import run_main
from jobs.ppo import main
sys.exit(run_main(main))
"""
"""The job, told to stop when three of the rollouts' scores are there."""

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

RUNS = """
import os, signal, sys
from promptist.cluster.metrics import MetricLog
from promptist.errors import run_main
from jobs.ppo import main
plain, end = MetricLog.log, 0
def log(self, step, metrics):
    plain(self, step, metrics)
    if step == end:
        os.kill(os.getpid(), signal.SIGKILL)
MetricLog.log = log
def runs(argv):
    global end
    config, *rest = argv
    overrides = [word for word in rest if "=" in word]
    for name, stage, step in (word.split("/") for word in rest if "=" not in word):
        end = int(step)
        assert main([config, f"run.name={name}", f"zero.stage={stage}", *overrides]) == 0
sys.exit(run_main(runs))
"""
"""Several runs, `NAME/STAGE/STEP` each, in one start of Python: all training ranks die when they have logged STEP."""

REWARD_DIES = """
import os, signal, sys
from promptist.reward.model import RewardModel
RewardModel.measure = lambda self, requests: os.kill(os.getpid(), signal.SIGKILL)
from promptist.errors import run_main
from jobs.ppo import main
sys.exit(run_main(main))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job's config."""
    return make_tiny_job(tmp_path_factory.mktemp("ppo"), ppo={"iterations": 4}, run={"name": "a"})


@pytest.fixture(scope="module")
def runs(world: Path, mpirun: Mpirun) -> Path:
    """Folder of runs: `calm1` and `calm3` (ZeRO stages) came through undisturbed, `killed1` died after step 3.

    Two training and two reward ranks.
    """
    words = ["calm1/1/-1", "calm3/3/-1", "killed1/1/3", "roles.reward_per_node=2"]
    assert mpirun(4, RUNS, [world, *words], timeout_s=TIMEOUT_S).returncode != 0
    return world.parent / "runs"


def alone(source: str, *args: object) -> Finished:
    """Python source or module in one process without mpirun."""
    target = ["-c", source] if "\n" in source else ["-m", source]
    return run_command([sys.executable, *target, *map(str, args)], timeout_s=TIMEOUT_S)


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


def assert_same_run(a: Path, b: Path, tensors_at_least: int = 20) -> None:
    """Metrics, final weights and the networks' optimisers, bit by bit."""
    assert deterministic(a) == deterministic(b)
    for export in ("export", "export-best"):
        name = f"{export}/model.safetensors"
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = tensors(a / "checkpoints" / "step_000004"), tensors(b / "checkpoints" / "step_000004")
    assert left.keys() == right.keys()
    assert len(left) > tensors_at_least
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def test_bug_resume_finds_what_save_wrote(world: Path, runs: Path, mpirun: Mpirun) -> None:
    """Runs killed between checkpoints end with the weights of undisturbed ones, ZeRO 1 and 3.

    They go on with one reward rank instead of two: no number may change.
    """
    assert mpirun(3, RUNS, [world, "killed3/3/3"], timeout_s=TIMEOUT_S).returncode != 0
    for name in ("killed1", "killed3"):
        assert [line["step"] for line in deterministic(runs / name)] == [0, 1, 2, 3]
        assert not (runs / name / "done.json").exists()
        assert (runs / name / "checkpoints" / "step_000002" / "complete.json").exists()
        assert not (runs / name / "checkpoints" / "step_000003").exists()
    mpirun(3, RUNS, [world, "killed1/1/-1", "killed3/3/-1"], timeout_s=TIMEOUT_S).ok()
    for stage in (1, 3):
        assert "resumed from" in (runs / f"killed{stage}" / "logs" / "attempt_2" / "00000.log").read_text("utf-8")
        assert_same_run(runs / f"killed{stage}", runs / f"calm{stage}")


def test_the_undisturbed_run(runs: Path) -> None:
    run = runs / "calm1"
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
    """One process, told to stop after its first iteration and again while it waits for the second one's scores, against
    mpirun -n 2."""
    folder = world.parent / "runs"
    stopped = alone(ENDS.format(step=1, signal="SIGUSR2"), world, "run.name=alone")
    assert stopped.returncode == EXIT_STOPPED, stopped
    assert "stopped by a signal after iteration 1" in stopped.stderr
    stopped = alone(STOPS_WHILE_WAITING, world, "run.name=alone")
    assert stopped.returncode == EXIT_STOPPED, stopped
    assert "stopped by a signal in iteration 2" in stopped.stderr
    assert [line["step"] for line in deterministic(folder / "alone")] == [0, 1]
    assert len((folder / "alone" / "in_flight" / "00000.jsonl").read_text(encoding="utf-8").splitlines()) >= 4
    assert not (folder / "alone" / "done.json").exists()
    assert "reference checked" in alone(REFERENCE, world, "run.name=alone").ok().stdout
    mpirun(2, "jobs.ppo", [world, "run.name=pair"], timeout_s=TIMEOUT_S).ok()
    assert_same_run(folder / "alone", folder / "pair")


def test_all_remedies_at_once_resume_exactly(world: Path, mpirun: Mpirun) -> None:
    """Killed after step 3 and gone on with, against one that came through; no value network, the KL coefficient moves.

    Two training ranks, then one process for the start: a group's rewrites, noises and rarity know no ranks.
    """
    remedies = [
        "ppo.group=2", "ppo.baseline=group", "ppo.chunk=2", "ppo.diversity_coef=0.1", "ppo.kl_schedule=adaptive",
        "ppo.kl_target=0.5", "ppo.kl_horizon=20", "ppo.validation_pick=hash", "reward.terms.gate={tolerance: 0.05}",
        "reward.terms.fidelity={price: 5, limit: 0.1}",
    ]  # fmt: skip
    runs = world.parent / "runs"
    assert mpirun(3, RUNS, [world, "all_calm/1/-1", "all_killed/1/3", *remedies], timeout_s=TIMEOUT_S).returncode != 0
    assert [line["step"] for line in deterministic(runs / "all_killed")] == [0, 1, 2, 3]
    mpirun(3, RUNS, [world, "all_killed/1/-1", *remedies], timeout_s=TIMEOUT_S).ok()
    assert_same_run(runs / "all_killed", runs / "all_calm", tensors_at_least=5)
    metrics = deterministic(runs / "all_calm")
    coefs = [line["kl_coef"] for line in metrics[1:]]
    assert coefs[:2] == [0.2, pytest.approx(0.2 * (1 - 0.2 * 8 / 20))]  # the first KL is 0
    assert len(set(coefs)) == 4
    assert not [name for line in metrics for name in line if "value" in name or "variance" in name]
    assert not (runs / "all_calm" / "checkpoints" / "step_000004" / "value").exists()
    assert json.loads((runs / "all_calm" / "export" / "promptist.json").read_text("utf-8"))["pick"] == "hash"
    for step in (1, 3):
        rollouts = read_rollouts(runs / "all_calm" / "rollouts" / f"step_{step:06d}.parquet")
        for first, second in zip(rollouts[::2], rollouts[1::2], strict=True):
            assert (first.x, first.ks, first.aesthetic_x) == (second.x, second.ks, second.aesthetic_x)
    # Two pictures of each rewrite, and two of each prompt for its whole group.
    assert [line["images"] for line in metrics[1:] if line["images"] > 2 * 8 + 2 * 4] == []
    one = alone("jobs.ppo", world, "run.name=all_one", "ppo.iterations=1", *remedies, "roles.reward_per_node=null").ok()
    assert "finished" in one.stderr
    of_step_1 = [read_rollouts(runs / name / "rollouts" / "step_000001.parquet") for name in ("all_one", "all_calm")]
    for left, right in zip(*of_step_1, strict=True):
        for name in ("row", "x", "y", "response_ids", "ks", "aesthetic_y", "cosine_y", "aesthetic_x", "cosine_x"):
            assert getattr(left, name) == getattr(right, name), name


def test_a_dead_reward_rank_ends_the_world(world: Path, mpirun: Mpirun) -> None:
    died = mpirun(2, REWARD_DIES, [world, "run.name=dead"], timeout_s=TIMEOUT_S)  # else the time-out would end it
    assert died.returncode != 0
    assert not list((world.parent / "runs" / "dead" / "checkpoints").iterdir())


def test_several_processes_without_a_reward_rank_are_refused(world: Path, mpirun: Mpirun) -> None:
    ended = mpirun(2, "jobs.ppo", [world, "roles.reward_per_node=null", "run.name=none"])
    assert ended.returncode == 64
    assert ended.stderr.count("error:") == 1
    assert "no reward rank" in ended.stderr


def test_bad_input_is_one_sentence_and_exit_64(world: Path, runs: Path) -> None:
    """Refused, and nothing recorded: the corrected command can use the same run folder. A finished run says so."""
    empty = world.parent / "empty.txt"
    empty.write_text("", encoding="utf-8")
    torn = runs / "torn"
    shutil.copytree(runs / "calm1", torn, ignore=shutil.ignore_patterns("done.json"))
    text = (torn / "config.yaml").read_text(encoding="utf-8").replace("name: calm1", "name: torn")
    (torn / "config.yaml").write_text(text, encoding="utf-8")
    for path in (torn / "checkpoints").iterdir():
        (path / "state.json").write_text("{}", encoding="utf-8")
    expected = {
        "ppo.iteration=7": "unknown key `ppo.iteration`",
        "ppo.batch=7": "zero.micro_batch = 2 does not divide",
        f'data.prompts=[{{"path":"{empty}"}}]': "holds no prompt",
        "data.valid=/nowhere.txt": "/nowhere.txt does not exist",
        "model.path=/nowhere/policy": "model folder /nowhere/policy does not exist",
        "reward.diffusion.path=/nowhere/sd": "reward.diffusion.path = '/nowhere/sd' does not exist",
        "reward.aesthetic.path=nowhere": "reward.aesthetic.path = 'nowhere' does not exist",
        "data.max_prompt_tokens=60": "need 68 positions, but the model",
        "run.name=calm1 ppo.kl_coef=0.3": "ppo.kl_coef was 0.2 and is now 0.3",
        "run.name=torn": "step_000004: state.json has",
    }
    names = [run if "run.name" in run else f"run.name=bad {run}" for run in expected]
    ended = run_one_after_the_other("jobs.ppo", world, [*names, "run.name=calm1"], timeout_s=TIMEOUT_S)
    for (run, sentence), (code, _, stderr) in zip(expected.items(), ended[:-1], strict=True):
        assert code == 64, (run, stderr)
        assert sentence in stderr, (run, stderr)
        assert stderr.count("error:") == 1, (run, stderr)
        assert "Traceback" not in stderr, (run, stderr)
    assert not (runs / "bad").exists()
    code, stdout, _ = ended[-1]
    assert (code, "calm1 is finished" in stdout) == (0, True)
