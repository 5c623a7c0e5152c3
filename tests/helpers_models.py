"""Tiny GPT-2 folders and ragged batches for tests of models and trainers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

DROPOUT = 0.3
"""What the tiny folders' config asks for: a loader that obeyed it would be noticed."""


def write_tiny_gpt2(folder: Path, tokenizer_folder: Path, weights: bool = True, seed: int = 0) -> Path:
    """A Hugging Face folder: 3 blocks of width 16, the given tokenizer, random weights or none."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = int(tokenizer.eos_token_id)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=16,
        n_layer=3,
        n_head=2,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.2,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT),
    )
    if weights:
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder


def ragged_batch(vocabulary: int, rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, int]:
    """`(input_ids [rows, P + R], prompt_lengths, response_lengths, R)` in the layout of a rollout."""
    g = torch.Generator().manual_seed(seed)
    prompt_width, width = 7, 9
    prompts = torch.randint(1, prompt_width + 1, (rows,), generator=g)
    responses = torch.randint(1, width + 1, (rows,), generator=g)
    prompts[0], responses[0] = prompt_width, width
    prompts[-1], responses[-1] = 1, 1
    ids = torch.zeros(rows, prompt_width + width, dtype=torch.long)
    for n in range(rows):
        start, end = prompt_width - int(prompts[n]), prompt_width + int(responses[n])
        ids[n, start:end] = torch.randint(1, vocabulary, (end - start,), generator=g)
    return ids, prompts, responses, width


def write_pairs(path: Path, count: int, seed: int) -> Path:
    """Pairs of made-up words in two kinds, lengths varied."""
    g = torch.Generator().manual_seed(seed)
    things, places, styles = (
        ["boat", "cat", "tree", "house"],
        ["sea", "desert", "snow"],
        ["oil painting", "detailed"],
    )

    def pick(words: list[str]) -> str:
        return words[int(torch.randint(len(words), (1,), generator=g))]

    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            source = f"a {pick(things)}" + (f" on the {pick(places)}" if index % 3 else "")
            target = ", ".join([source, *[pick(styles) for _ in range(index % 4)]])
            record = {
                "source": source,
                "target": target,
                "kind": ("MC", "RTP")[index % 2],
                "group": str(index),
            }
            file.write(json.dumps(record) + "\n")
    return path
