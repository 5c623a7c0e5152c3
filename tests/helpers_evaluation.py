"""An evaluation that runs in seconds: GPT-2, Stable Diffusion, CLIP and heads with random weights, a few prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

MODELS = ("sft", "ppo", "ppo-2")


def make_tiny_evaluation(folder: Path, tokenizer: Path, prompts: int = 3) -> Path:
    """Write models, prompts and `eval.yaml` below `folder`; the run is `folder/runs/tiny-eval`.

    Every kind of row but checkpoints, PPO trained twice, two held-out scorers, log-ratios against SFT.
    """
    import torch
    import yaml
    from safetensors.torch import save_file

    from tests.helpers_reward import EMBED, make_tiny_reward

    for seed, name in enumerate(MODELS):
        make_tiny_model(folder / name, tokenizer, seed)
    lines: list[dict[str, Any]] = [{"prompt": f"a red boat {i}", "set": "in"} for i in range(prompts)]
    for line in lines[::2]:
        line["human"] = f"{line['prompt']}, oil painting"
    write_lines(folder / "in.jsonl", lines[:2])
    (folder / "out.txt").write_text("".join(f"{line['prompt']}\n" for line in lines[2:]))
    targets = [{"source": "a boat", "target": f"a boat, {style}", "kind": "MC"} for style in ("detailed", "the sea")]
    write_lines(folder / "pairs.jsonl", targets)
    made = [{"prompt": line["prompt"], "rewrite": f"oil painting of {line['prompt']}"} for line in lines]
    write_lines(folder / "elsewhere.jsonl", made)
    generator = torch.Generator().manual_seed(8)
    head = {"weight": torch.randn(1, EMBED, generator=generator), "bias": torch.tensor([4.0])}
    reward, rival = make_tiny_reward(folder / "reward"), make_tiny_reward(folder / "rival")
    save_file(head, folder / "head.safetensors")
    config = {
        "run": {"name": "tiny-eval", "root": str(folder / "runs")},
        "reward": reward,
        "prompts": [str(folder / "in.jsonl"), str(folder / "out.txt")],
        "disjoint_from": [str(folder / "pairs.jsonl")],
        "methods": [
            {"name": "user", "kind": "user"},
            {"name": "human", "kind": "human"},
            {"name": "sft", "kind": "model", "path": str(folder / "sft")},
            {"name": "ppo", "kind": "model", "paths": [str(folder / "ppo"), str(folder / "ppo-2")]},
            {"name": "suffix", "kind": "suffix", "text": "oil painting"},
            {"name": "random", "kind": "random", "pairs": str(folder / "pairs.jsonl")},
            {"name": "other", "kind": "file", "path": str(folder / "elsewhere.jsonl")},
            {"name": "best-of", "kind": "best_of"},
        ],
        "held_out": [
            {"name": "rival", "clip": rival["clip"], "aesthetic": {"path": str(folder / "head.safetensors")},
             "terms": {"slope": 10.0, "offset": 2.0}},
            {"name": "v1", "head": str(folder / "head.safetensors")},
        ],
        "reference": str(folder / "sft"),
        "images": 2,
        "pictures": 1,
    }  # fmt: skip
    path = folder / "eval.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def make_tiny_model(folder: Path, tokenizer: Path, seed: int) -> None:
    """A GPT-2 of one layer with random weights that writes at most 12 tokens, as a Hugging Face folder."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    shutil.copytree(tokenizer, folder)
    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size = GPT2Config(vocab_size=vocabulary, n_positions=128, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3)
        GPT2LMHeadModel(size).save_pretrained(folder)
    (folder / "promptist.json").write_text(json.dumps({"max_new_tokens": 12}))


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
