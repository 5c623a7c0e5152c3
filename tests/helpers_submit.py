"""SFT, PPO and evaluation of one tiny world, and a site, as config files: what submission tests submit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.helpers_models import write_pairs
from tests.helpers_ppo import make_tiny_job, make_tiny_policy


@dataclass(frozen=True)
class TinyConfigs:
    """Config files; all runs go to `runs`."""

    sft: Path
    ppo: Path
    eval: Path
    runs: Path


def make_tiny_configs(folder: Path) -> TinyConfigs:
    """Write models, data and the three configs below `folder`. Runs are called tiny-sft, tiny-ppo, tiny-eval."""
    # Its export decodes as one of SFT does, which has no settings of its own: an evaluation of both asks for that.
    decoding = {"method": "beam", "beams": 8, "groups": 1, "length_penalty": -1.0}
    settings = {"validation_decoding": decoding, "validation_new_tokens": 75, "keep_rollouts": False}
    ppo = make_tiny_job(folder, run={"name": "tiny-ppo"}, ppo=settings)
    make_tiny_policy(folder / "policy", positions=128)
    config = yaml.safe_load(ppo.read_text("utf-8"))
    run = config["run"]
    sft: dict[str, Any] = {
        "run": {**run, "name": "tiny-sft"},
        "model": config["model"],
        "data": {
            "train": str(write_pairs(folder / "pairs.jsonl", 24, seed=1)),
            "valid": str(write_pairs(folder / "pairs-valid.jsonl", 6, seed=2)),
            "max_length": 64,
        },
        "sft": {"steps": 4, "batch": 8, "validate_every": 2},
        "optimizer": {"lr": 0.003},
        "zero": {"micro_batch": 2},
        "checkpoint": {"every": 1, "keep_last": 2},
        "logging": {"tensorboard": False},
    }
    prompts = [{"prompt": f"a {colour} boat", "set": "tiny"} for colour in ("red", "blue", "green", "white")]
    (folder / "eval.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts), encoding="utf-8")
    evaluation: dict[str, Any] = {
        "run": {**run, "name": "tiny-eval"},
        "reward": config["reward"],
        "prompts": str(folder / "eval.jsonl"),
        "methods": [
            {"name": "user", "kind": "user"},
            {"name": "sft", "kind": "model", "path": str(folder / "policy")},
            {"name": "ppo", "kind": "model", "path": str(folder / "policy")},
        ],
        "images": 1,
        "pictures": 1,
    }
    for name, content in (("sft", sft), ("eval", evaluation)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return TinyConfigs(folder / "sft.yaml", ppo, folder / "eval.yaml", folder / "runs")
