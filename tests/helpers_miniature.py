"""A short PPO run in the shipped miniature world: its real reward models, an untrained GPT-2, a few prompts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY

SHORT: dict[str, dict[str, Any]] = {
    "ppo": {
        "iterations": 6, "batch": 6, "chunk": 3, "epochs": 2, "new_tokens_min": 8, "new_tokens_max": 14,
        "validate_every": 3, "validation_prompts": 4, "validation_new_tokens": 12,
    },
    "zero": {"stage": 1, "micro_batch": 1},
    "decoding": {"beams": 3, "groups": 3},
    "checkpoint": {"every": 2, "keep_last": 2},
    "logging": {"tensorboard": False, "samples_every": 0},
}  # fmt: skip


def make_miniature_ppo(folder: Path, **sections: dict[str, Any]) -> Path:
    """Unpack the world below `folder` and write `ppo.yaml`, the demo's with `SHORT` and `sections` over it.

    Runs go to `folder/runs`; the reward ranks are those of the last node.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from promptist.synthetic.world import unpack

    world = folder / "world"
    unpack(world)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config.from_pretrained(world / "gpt2")).save_pretrained(world / "gpt2")
    text = "".join(
        (REPOSITORY / "configs/demo" / name).read_text(encoding="utf-8").replace("base: world.yaml", "")
        for name in ("world.yaml", "ppo.yaml")
    )
    config = yaml.safe_load(text.replace("runs/demo-world", str(world)))
    config["run"] = {"name": "mini", "root": str(folder / "runs"), "seed": 3}
    config["model"] = {"path": str(world / "gpt2")}
    config["roles"] = {"reward_nodes": 1}
    for changes in (SHORT, sections):
        for name, section in changes.items():
            config.setdefault(name, {}).update(section)
    path = folder / "ppo.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def steps(run: Path) -> list[int]:
    """The steps whose metrics are written."""
    try:
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def wait_for(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], str]) -> None:
    """Until `condition` holds; AssertionError with `describe()` past the time."""
    import time

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.05)


def attempts(run: Path) -> list[Mapping[str, Any]]:
    """The records of `promptist/cluster/attempts.py`, oldest first.

    Without starts in which MPI itself did not come up (seen once in some hundreds, between MPICH and SLURM's pmi2):
    they were queued again before the run folder was opened.
    """
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (run / "attempts").glob("*.json")]
    surplus = len(records) - len(list((run / "logs").glob("attempt_*")))
    kept = []
    for record in sorted(records, key=lambda record: record["restart"]):
        if surplus > 0 and record["outcome"] == "crashed" and record["sentence"] is None:
            surplus -= 1
        else:
            kept.append(record)
    return kept
