"""The demo's driver: what it would run, and that its configs fit the jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import EvalJob
from promptist import config, demo
from promptist.errors import UserError
from promptist.rl.config import PPOJob
from promptist.sft.config import SFTJob

JOBS: dict[str, Any] = {"sft": SFTJob, "ppo": PPOJob, "evaluate": EvalJob}


def test_seed_reaches_every_job_and_its_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "CONFIGS", Path("configs/demo").resolve())
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/demo-world/prompts", "runs/demo-world/rival", "runs/demo-eval-seed3"):
        Path(folder).mkdir(parents=True)
    Path("runs/demo-world/prompts/test.jsonl").touch()  # the world is unpacked already
    Path("runs/demo-eval-seed3/results.md").write_text("the table")
    jobs: dict[str, Any] = {}
    monkeypatch.setattr(
        demo, "launch", lambda job, file, overrides: jobs.update({job: config.load(JOBS[job], file, overrides)})
    )
    assert demo.run(["--seed", "3"]) == 0
    sft, ppo, evaluation = jobs["sft"], jobs["ppo"], jobs["evaluate"]
    assert (sft.run.name, sft.run.seed, ppo.run.name, ppo.run.seed) == ("demo-sft-seed3", 3, "demo-ppo-seed3", 3)
    assert ppo.model.path == "runs/demo-sft-seed3/export"
    assert demo.RANKS["ppo"] == ppo.roles.reward_per_node + 1
    assert {method.name: method.path for method in evaluation.methods if method.kind == "model"} == {
        "sft": "runs/demo-sft-seed3",
        "sft-best": "runs/demo-sft-seed3/export-best",
        "ppo": "runs/demo-ppo-seed3",
    }
    assert evaluation.reference == ["runs/demo-sft-seed3/export"]
    assert ppo.reward == evaluation.reward
    assert "the table" in capsys.readouterr().out


def test_outside_the_repository_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="top folder"):
        demo.run([])


def test_failing_job_ends_the_demo_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends with 64 (here by a stand-in for mpirun) ends the demo with 64."""
    mpirun = tmp_path / "mpirun"
    mpirun.write_text("#!/bin/sh\nexit 64\n")
    mpirun.chmod(0o755)
    monkeypatch.setattr(demo.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit) as stopped:
        demo.launch("sft", Path("configs/demo/sft.yaml"), [])
    assert stopped.value.code == 64
