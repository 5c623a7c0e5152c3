"""An evaluation that runs in seconds: GPT-2, Stable Diffusion, CLIP and head with random weights, a few prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def make_tiny_evaluation(folder: Path, tokenizer: Path, prompts: int = 3) -> Path:
    """Write models, prompts and `eval.yaml` below `folder`; the run is `folder/runs/tiny-eval`."""
    import torch
    import yaml
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from tests.helpers_reward import make_tiny_reward

    model = folder / "model"
    shutil.copytree(tokenizer, model)
    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=16, n_layer=1, n_head=2)
        GPT2LMHeadModel(size).save_pretrained(model)
    lines = [{"prompt": f"a red boat {i}", "set": "in" if i < 2 else "out"} for i in range(prompts)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "run": {"name": "tiny-eval", "root": str(folder / "runs")},
        "reward": make_tiny_reward(folder / "reward"),
        "prompts": str(folder / "eval.jsonl"),
        "methods": [
            {"name": "user", "kind": "user"},
            {"name": "ppo", "kind": "model", "path": str(model)},
        ],
        "images": 2,
        "pictures": 1,
    }
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
