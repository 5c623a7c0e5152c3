"""A PPO job that runs in seconds: tiny random policy, tiny random reward world, a dozen prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helpers_reward import make_tiny_reward
from tests.helpers_text import train_byte_level_bpe

COLOURS = ["red", "blue", "green"]
THINGS = ["boat", "house", "tree", "cat", "ball"]
TEXT = "red blue green boat house tree cat ball on under near the sea sky hill oil painting Rephrase:"


def make_tiny_policy(folder: str | Path, positions: int = 64) -> Path:
    """A two-layer GPT-2 with random weights and a byte-level BPE tokenizer, as a Hugging Face folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    fast = train_byte_level_bpe([TEXT] * 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = GPT2Config(
            vocab_size=len(fast), n_positions=positions, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4
        )
        config.bos_token_id = config.eos_token_id = config.pad_token_id = fast.eos_token_id
        GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return Path(folder)


def make_tiny_job(folder: Path, **sections: dict[str, Any]) -> Path:
    """Write models, prompts and `ppo.yaml` below `folder`; `sections` update the config.

    Runs go to `folder/runs`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
    (folder / "train.txt").write_text("".join(f"a {x} near the sea\n" for x in prompts), encoding="utf-8")
    valid = [f"the {x} on a hill" for x in prompts[:5]]
    # A repeated validation prompt: it must count once.
    (folder / "valid.txt").write_text("".join(f"{x}\n" for x in [*valid, valid[0]]), encoding="utf-8")
    config: dict[str, Any] = {
        "run": {"name": "tiny", "root": str(folder / "runs"), "seed": 5},
        "roles": {"reward_per_node": 1},
        "checkpoint": {"every": 2, "keep_last": 2},
        "logging": {"tensorboard": False, "samples_every": 2, "samples": 2},
        "model": {"path": str(make_tiny_policy(folder / "policy"))},
        "optimizer": {"lr": 1e-2},
        "zero": {"stage": 1, "micro_batch": 2},
        "decoding": {"method": "diverse_beam", "beams": 3, "groups": 3},
        "ppo": {
            "iterations": 3,
            "batch": 8,
            "chunk": 2,
            "epochs": 2,
            "new_tokens_min": 3,
            "new_tokens_max": 8,
            "validate_every": 2,
            "validation_prompts": 6,
            "validation_images": 1,
            "validation_decoding": {"method": "beam", "beams": 2, "groups": 1, "length_penalty": -1.0},
            "validation_new_tokens": 6,
            "keep_rollouts": True,
        },
        "reward": make_tiny_reward(folder / "reward"),
        "data": {
            "prompts": [{"path": str(folder / "train.txt")}],
            "valid": str(folder / "valid.txt"),
            "max_prompt_tokens": 40,
        },
    }
    for name, section in sections.items():
        config[name].update(section)
    path = folder / "ppo.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def deterministic(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without timings."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]
