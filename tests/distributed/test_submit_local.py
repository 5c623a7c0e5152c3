"""Submission without a scheduler: the same runs on this machine, through submitit's LocalExecutor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import submit
from promptist.cluster.site import ClusterConfig, Resources
from promptist.errors import UserError
from tests.helpers_submit import make_tiny_configs

pytestmark = pytest.mark.distributed
SITE = ClusterConfig(signal_lead_s=60, sft=Resources(tasks_per_node=2, time="0:20:00"))


def test_two_ranks_here(tmp_path: Path) -> None:
    """SFT of two ranks to its end; a bad end is told in one sentence."""
    tiny = make_tiny_configs(tmp_path)
    run = tiny.runs / "tiny-sft"
    (job,) = submit.sft(tiny.sft, ["sft.steps=2"], site=SITE, local=True)
    assert (job.done(), job.result()) == (True, 0)
    assert (run / "done.json").exists()
    ranks = json.loads((run / "env.json").read_text())["ranks"]
    assert [rank["role"] for rank in ranks] == ["train", "train"]
    (tiny.runs.parent / "pairs.jsonl").write_text('{"source": "a cat"}\n')
    with pytest.raises(UserError, match=r"sft did not finish; .*pairs.jsonl:1"):
        submit.sft(tiny.sft, ["sft.steps=2", "run.name=bad"], site=ClusterConfig(signal_lead_s=60), local=True)
