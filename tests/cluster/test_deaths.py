"""A few of the deaths of `python -m tests.cluster.deaths`: each sort of recovery once, both jobs, all ZeRO stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.deaths import Bench, Case, pairwise
from tests.cluster.testbed import Cluster

CASES = [
    Case("ppo", 1, "reward rank killed"),
    Case("ppo", 3, "node DOWN"),
    Case("sft", 3, "killed in a save: before the rename"),
    Case("sft", 2, "disk full while saving"),
    Case("sft", 1, "truncated shard"),
]


@pytest.fixture(scope="module")
def bench(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(slurm, tmp_path_factory.mktemp("deaths"))
    for job in ("ppo", "sft"):
        bench.undisturbed(job, [case.stage for case in CASES if case.job == job])
    return bench


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.job}-{case.stage}-{case.death.replace(' ', '_')}")
def test_survives(bench: Bench, case: Case) -> None:
    bench.run(case)


def test_pairwise_leaves_out_no_pair() -> None:
    cases = pairwise()
    for job in ("sft", "ppo"):
        assert {case.stage for case in cases if case.job == job} == {1, 2, 3}
    for death in {case.death for case in cases}:
        own = [case for case in cases if case.death == death]
        assert {case.stage for case in own} == {1, 2, 3}
        assert {case.job for case in own} == ({"ppo"} if "reward" in death else {"sft", "ppo"})


def test_a_run_that_differs_is_noticed(bench: Bench) -> None:
    """The comparison can fail: against weights in which one bit is another."""
    from tests.cluster.deaths import _Run

    run = _Run(bench, CASES[2], bench.configs["sft"].parent / "runs")
    run.path = run.calm
    run._compare()
    other = Path(run.calm.parent / "other")
    for name in ("export", "export-best"):
        (other / name).mkdir(parents=True)
        weights = bytearray((run.calm / name / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (other / name / "model.safetensors").write_bytes(weights)
    run.path = other
    with pytest.raises(AssertionError):
        run._compare()
