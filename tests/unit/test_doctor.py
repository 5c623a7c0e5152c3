"""`promptist doctor` on one rank: what each check says, what it refuses, and that none of them can hang it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import threading
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from promptist import cli
from promptist.cluster import checks, doctor
from promptist.cluster.checks import Check, Found, Patient
from promptist.cluster.doctor import Finding
from promptist.cluster.needs import load_job
from promptist.cluster.roles import World
from promptist.errors import UserError
from tests.helpers_ppo import make_tiny_job

ALONE = World(0, 1, "both", 0, 1, 0, ("both",), ("here",), (0,))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_job(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def patient(config: Path, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """The tiny PPO job, alone, outside of SLURM."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    kind, job = load_job(config)
    return Patient(kind, job, ALONE, config.parent / "runs/tiny")


def world(roles: str, rank: int = 0, nodes: tuple[int, ...] | None = None) -> World:
    """`ttr`: two ranks that train and one that paints."""
    names = tuple({"t": "train", "r": "reward", "b": "both"}[letter] for letter in roles)
    nodes = nodes or (0,) * len(names)
    group = [r for r in range(len(names)) if names[r] == names[rank]]
    return World(
        rank, len(names), names[rank], group.index(rank), len(group), rank, names,  # type: ignore[arg-type]
        tuple(f"node{node}" for node in nodes), nodes,
    )  # fmt: skip


def test_who_is_concerned(patient: Patient) -> None:
    ranks = [replace(patient, world=world("ttrttr", rank, (0, 0, 0, 1, 1, 1))) for rank in range(6)]

    def concerned(name: str) -> list[int]:
        check = next(check for check in checks.CHECKS if check.name == name)
        return [rank for rank, one in enumerate(ranks) if check.concerns(one)]

    assert concerned("MPI") == concerned("disk") == [0]
    assert concerned("GPU") == [0, 1, 2, 3, 4, 5]
    assert concerned("all-reduce") == [0, 1, 3, 4]
    assert concerned("reward") == [2, 5]
    assert concerned("model files") == [0, 2, 3, 5]
    assert concerned("signal") == []


def test_roles_by_host_and_a_batch_that_does_not_divide(patient: Patient) -> None:
    two_nodes = replace(patient, world=world("ttrttr", 0, (0, 0, 0, 1, 1, 1)))
    assert checks.roles(two_nodes).text == "node0: train 0-1; paint 2 | node1: train 3-4; paint 5"
    assert checks.roles(patient).text == "here: train and paint 0"
    with pytest.raises(UserError, match="batch"):
        checks.roles(replace(patient, world=world("tttr")))  # 8 prompts for 3 ranks


def test_each_role_looks_for_its_own_models(patient: Patient, config: Path) -> None:
    def keys(one: Patient) -> set[str]:
        return set(checks.model_files(one).text.removesuffix(" present").split(", "))

    painters = {"reward.diffusion.path", "reward.clip.model", "reward.aesthetic.path"}
    assert keys(patient) == {"model.path", *painters}
    assert keys(replace(patient, world=world("tr", 0))) == {"model.path"}
    assert keys(replace(patient, world=world("tr", 1))) == painters
    (config.parent / "policy/model.safetensors").rename(config.parent / "away")
    try:
        with pytest.raises(UserError, match=r"^model.path: .* holds no weights"):
            checks.model_files(patient)
        checks.model_files(replace(patient, world=world("tr", 1)))
    finally:
        (config.parent / "away").rename(config.parent / "policy/model.safetensors")


def test_disk(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from promptist.models.policy import load_policy
    from promptist.models.value import load_value

    networks = [load_policy(patient.job.model), load_value(patient.job.model, patient.job.value)]
    parameters = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert checks.checkpoint_bytes(patient) == (
        16 * sum(parameters), f"{parameters[0]:,} + {parameters[1]:,} parameters with Adam's state",
    )  # fmt: skip
    few = replace(patient, job=replace(patient.job, model=replace(patient.job.model, trainable_blocks=1)))
    frozen = sum(p.numel() for p in load_policy(few.job.model).parameters() if not p.requires_grad)
    assert checks.checkpoint_bytes(few)[0] == 16 * sum(parameters) - 12 * frozen > 0

    (tmp_path / "run").mkdir()
    here = replace(patient, run=tmp_path / "run/not/made/yet")
    enough = types.SimpleNamespace(total=0, used=0, free=32 * sum(parameters))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: enough if path == tmp_path / "run" else None)
    assert f"are free in {tmp_path / 'run'}" in checks.disk(here).text
    enough.free -= 1
    with pytest.raises(UserError, match=r"two checkpoints need .*: free some space"):
        checks.disk(here)

    # A checkpoint that is there says it better.
    step = tmp_path / "run/checkpoints/step_000003"
    step.mkdir(parents=True)
    (step / "engine").write_bytes(b"0123456789")
    record = {"format": 1, "step": 3, "world_size": 1, "files": {"engine": {"size": 10, "sha256": ""}}}
    (step / "complete.json").write_text(json.dumps(record))
    assert checks.checkpoint_bytes(replace(patient, run=tmp_path / "run")) == (10, "as step_000003")


def test_xformers(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks.xformers(patient).text == "not asked for: reward.diffusion.attention is sdpa"
    diffusion = replace(patient.job.reward.diffusion, attention="xformers")
    asked = replace(patient, job=replace(patient.job, reward=replace(patient.job.reward, diffusion=diffusion)))
    monkeypatch.setitem(sys.modules, "xformers", None)
    with pytest.raises(UserError, match=r"cannot be imported .*install promptist\[xformers\], or set it to sdpa"):
        checks.xformers(asked)
    package = types.ModuleType("xformers")
    package.__version__ = "0.0.35"  # type: ignore[attr-defined]
    package.ops = types.ModuleType("xformers.ops")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)
    assert checks.xformers(asked).text == "xformers 0.0.35"


def test_a_gpu_that_is_asked_for_and_is_not_there(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert checks.gpu(patient).text == "none: computes on the CPU"
    diffusion = replace(patient.job.reward.diffusion, device="cuda")
    asked = replace(patient, job=replace(patient.job, reward=replace(patient.job.reward, diffusion=diffusion)))
    with pytest.raises(UserError, match="sees no GPU: ask the scheduler"):
        checks.gpu(asked)
    assert checks.gpu(replace(asked, world=world("tr", 0))).text.startswith("none")  # it trains


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """`scontrol(script)`: a job whose batch script is this (None: it has none)."""

    def serve(script: str | None) -> None:
        program = tmp_path / "bin/scontrol"
        program.parent.mkdir(exist_ok=True)
        (tmp_path / "script").write_text(script or "")
        test = '[ "$*" = "write batch_script 12_3 -" ] || exit 9\n'
        body = f"cat {tmp_path}/script" if script is not None else "echo 'Job has no batch script' >&2; exit 1"
        program.write_text(f"#!/bin/sh\n{test}{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "17"), ("ARRAY_JOB_ID", "12"), ("ARRAY_TASK_ID", "3")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    return serve


def test_signal_lead(patient: Patient, tmp_path: Path, scontrol: Callable[[str | None], None]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    here = replace(patient, run=run)
    scontrol("#!/bin/bash\n#SBATCH --time=10\n#SBATCH --signal=USR2@120\nsrun x\n")
    assert checks.signal_lead(here).text.startswith("120 s ahead of the time limit; how long")
    lines = [{"step": 1, "time/update": 20, "time/wait": 500}, {"step": 2, "time/update": 70, "time/save": 40}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert checks.signal_lead(here).text.endswith("the longest phase and a save took 110 s so far")
    scontrol("#SBATCH --signal=R:SIGUSR2\n")
    with pytest.raises(UserError, match=r"60 s ahead .* took 110 s so far: raise it in --signal=USR2@220"):
        checks.signal_lead(here)
    scontrol("#SBATCH --signal=B:USR2@120\n")
    with pytest.raises(UserError, match="without B:"):
        checks.signal_lead(here)
    scontrol("#SBATCH --signal=USR1@120\n")
    with pytest.raises(UserError, match="make it USR2@SECONDS"):
        checks.signal_lead(here)
    scontrol("#!/bin/bash\n##SBATCH --signal=USR2@120\n")
    assert "asks for none" in checks.signal_lead(here).text
    scontrol(None)
    assert "no batch script" in checks.signal_lead(here).text


def test_a_check_that_fails_or_does_not_end(patient: Patient) -> None:
    release = threading.Event()

    def hang(one: Patient) -> Found:
        release.wait(60)
        return Found("late")

    def refuse(one: Patient) -> Found:
        raise UserError("no model: fetch it")

    def crash(one: Patient) -> Found:
        raise RuntimeError("CUDA error:\n out of memory")

    def examine(run: Callable[[Patient], Found]) -> Finding:
        return doctor.examine(Check("x", lambda p: True, run), patient, 0.2)

    began = time.monotonic()
    assert examine(hang) == Finding(0, False, "no end after 0 s: the job would hang here, too", given_up=True)
    assert time.monotonic() - began < 5
    release.set()
    assert examine(refuse) == Finding(0, False, "no model: fetch it")
    assert examine(crash) == Finding(0, False, "RuntimeError: CUDA error: out of memory")
    assert examine(lambda p: Found("good", same="a")) == Finding(0, True, "good", "a")


def test_what_must_be_the_same_and_lines(patient: Patient) -> None:
    found = [Finding(rank, True, "fine", same="b" if rank == 4 else "a") for rank in (1, 2, 4)]
    assert doctor.compare(found[:2]) == found[:2]
    differ = doctor.compare(found)[-1]
    assert not differ.ok and differ.text.startswith("ranks 1-2 / 4 do not have the same models")
    place = world("rrrrr", 0, (0, 0, 1, 2, 3))
    check = Check("reward", lambda p: True, checks.reward)
    assert doctor.report(check, [*found, differ, Finding(0, False, "no GPU")], place)[0::2] == [
        "ok    reward       ranks 1-2, 4 on node0, node1, node3: fine",
        "FAIL  reward       rank 0 on node0: no GPU",
    ]
    assert doctor.report(replace(check, everywhere=True), found[:1], place) == ["ok    reward       fine"]


def test_alone(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # The rest is tried under mpirun; another process may hold MPI's only world of this one.
    monkeypatch.setattr(doctor, "join_world", lambda roles: ALONE)
    monkeypatch.setattr(doctor, "CHECKS", tuple(c for c in checks.CHECKS if c.name in ("roles", "disk", "xformers")))
    assert cli.main(["doctor", str(config)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:3]] == [["ok", "roles"], ["ok", "xformers"], ["ok", "disk"]]
    assert said[3:] == ["all is well"]
    assert cli.main(["doctor", str(config), "reward.diffusion.attention=xformers"]) == 64
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 3 findings is not as needed"
    assert cli.main(["doctor", str(config), "pop.x=1"]) == 64
    assert "unknown key" in capsys.readouterr().err
