"""`promptist doctor` in an MPI world: the tiny job is well; ranks that fail, hang or fall silent hold up nobody."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.conftest import Mpirun
from tests.helpers_ppo import make_tiny_job

pytestmark = pytest.mark.distributed

ILL = """
import sys, time
from types import SimpleNamespace
from promptist.cluster import doctor
from promptist.cluster.checks import Check, Found
from promptist.cluster.roles import RolesConfig
from promptist.errors import UserError, run_main

def refuse(p):
    if p.world.rank == 2:
        raise UserError("no GPU: ask for one")
    return Found("fine")

def hang(p):
    if p.world.rank == 1:
        time.sleep(600)
    return Found("fine")

job = SimpleNamespace(roles=RolesConfig(reward_per_node=1), run=SimpleNamespace(root="runs", name="x"))
doctor.load_job = lambda config, overrides: ("ppo", job)
doctor.rendezvous = lambda world: {}
everyone = lambda p: True
doctor.CHECKS = (Check("first", everyone, refuse), Check("second", everyone, hang), Check("third", everyone, refuse))
doctor._GRACE_S = 1.0
if sys.argv[1] == "silent":  # not a check that hangs, but the rank itself
    examine = doctor.examine
    def asleep(check, patient, timeout_s):
        if patient.world.rank == 1 and check.name == "second":
            time.sleep(600)
        return examine(check, patient, timeout_s)
    doctor.examine = asleep
sys.exit(run_main(lambda argv: doctor.main("x", [], 2.0)))
"""


def test_the_tiny_job_is_well(tmp_path: Path, mpirun: Mpirun) -> None:
    done = mpirun(3, "promptist.cli", ["doctor", make_tiny_job(tmp_path)], timeout_s=600).ok()
    lines = [line for line in done.stdout.splitlines() if re.match("ok|FAIL", line)]
    assert not [line for line in lines if line.startswith("FAIL")]
    text = "\n".join(lines)
    assert re.search(r"^ok +MPI +3 ranks on 1 node, thread level \w+, \S", text, re.M)
    assert re.search(r"^ok +roles .*: train 0-1; paint 2$", text, re.M)
    assert re.search(r"^ok +model files +rank 0 on \S+: model.path present", text, re.M)
    assert re.search(r"^ok +model files +rank 2 on \S+: reward.diffusion.path, ", text, re.M)
    speeds = re.findall(r"64 MiB over 2 ranks by \w+, sum right, [\d.]+ ms: [\d.]+ [MG]B/s", text)
    assert 1 <= len(speeds) <= 2  # one line where both measure the same
    assert re.search(r"^ok +reward +rank 2 on \S+: a batch of 3 in [\d.]+ s after [\d.]+ s of loading", text, re.M)
    assert re.search(r"^ok +disk +rank 0 on \S+: two checkpoints need", text, re.M)
    assert done.stdout.rstrip().endswith("all is well")


@pytest.mark.parametrize("how", ["hangs", "silent"])
def test_a_rank_that_fails_or_hangs_is_named_and_holds_up_nobody(mpirun: Mpirun, how: str) -> None:
    began = time.monotonic()
    done = mpirun(3, ILL, [how], timeout_s=240)
    assert done.returncode == 64, done
    assert time.monotonic() - began < 200
    lines = [re.sub(r" on \S+:", ":", line) for line in done.stdout.splitlines()]
    reasons = {"hangs": "no end after 2 s: the job would hang here, too", "silent": "no answer within 3 s"}
    assert lines[:4] == [
        "ok    first        ranks 0-1: fine",
        "FAIL  first        rank 2: no GPU: ask for one",
        "ok    second       ranks 0, 2: fine",
        f"FAIL  second       rank 1: {reasons[how]}",
    ]
    assert "FAIL  third        rank 2: no GPU: ask for one" in lines
    failed = 3 if how == "hangs" else 4  # a rank that sleeps does not answer the third time either
    assert f"{failed} of 9 findings are not as needed" in lines
