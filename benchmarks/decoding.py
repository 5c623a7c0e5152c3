"""Diverse beam search against the least work it could do, and against transformers 4.56.2.

    python benchmarks/decoding.py [--model small|gpt2] [--oracle FOLDER]

32 prompts, 8 beams in 8 groups, 32 new tokens, one thread, float32. `bare` is transformers' own GPT-2 with
its own DynamicCache on as many rows, one token at a time, with one logsumexp and one topk per step and no
search. EOS is left out of reach, so that every method runs all its steps. Times are the CPU seconds of the
process (best of several runs, taken in turns), which other programs on the machine disturb less than the
clock.

`--oracle` names the folder of transformers 4.56.2 (`.venv/oracles/transformers-4.56.2`); its group beam
search then runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

PROMPTS, BEAMS, WIDTH, NEW = 32, 8, 12, 32
SIZES = {
    "small": {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 2000},
    "gpt2": {"n_layer": 6, "n_embd": 384, "n_head": 6, "vocab_size": 50257},
}


def make_model(name: str):  # type: ignore[no-untyped-def]
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(**SIZES[name], n_positions=128, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # EOS far below every other token
        row = model.transformer.wte.weight[0]
        model.transformer.ln_f.bias -= 40 * row / row.square().sum()
    return model


def make_prompts(name: str) -> tuple[Tensor, Tensor]:
    """Left-padded prompts of 6 to 12 tokens and their mask, `[32, 12]`."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, SIZES[name]["vocab_size"], (PROMPTS, WIDTH), generator=generator)
    lengths = torch.randint(WIDTH // 2, WIDTH + 1, (PROMPTS, 1), generator=generator)
    mask = (torch.arange(WIDTH) >= WIDTH - lengths).long()
    return ids * mask, mask


@torch.no_grad()
def bare(model, input_ids: Tensor, mask: Tensor) -> None:  # type: ignore[no-untyped-def]
    """The model's own steps: prompts read once, the cache repeated per beam, then one token per row at a
    time."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    logits = model(input_ids, attention_mask=mask, position_ids=positions, **options).logits[:, -1]
    cache.batch_repeat_interleave(BEAMS)
    mask, positions = (part.repeat_interleave(BEAMS, dim=0) for part in (mask, positions[:, -1:]))
    tokens = logits.topk(2).indices[:, :1].repeat_interleave(BEAMS, dim=0)
    for step in range(1, NEW):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(tokens, attention_mask=mask, position_ids=positions + step, **options).logits[:, -1]
        best = logits.topk(2)
        _ = best.values - logits.logsumexp(dim=-1, keepdim=True)
        tokens = best.indices[:, :1]


def ours(model, input_ids: Tensor, mask: Tensor) -> None:  # type: ignore[no-untyped-def]
    from promptist.decoding.config import DecodingConfig
    from promptist.decoding.decode import decode

    decode(model, input_ids, mask, NEW, DecodingConfig(beams=BEAMS, groups=BEAMS), 0, 0, BEAMS)


def theirs(model, input_ids: Tensor, mask: Tensor) -> None:  # type: ignore[no-untyped-def]
    model.generate(
        input_ids,
        attention_mask=mask,
        max_new_tokens=NEW,
        do_sample=False,
        num_beams=BEAMS,
        num_beam_groups=BEAMS,
        num_return_sequences=BEAMS,
        diversity_penalty=1.0,
        eos_token_id=0,
        pad_token_id=0,
    )


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--oracle", help="folder of transformers 4.56.2")
    parser.add_argument("--as-oracle", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.model or SIZES:
        model, (input_ids, mask) = make_model(name), make_prompts(name)
        if arguments.as_oracle:
            took = seconds(lambda: theirs(model, input_ids, mask))  # noqa: B023
            print(f"{name}: transformers 4.56.2 group beam search {took:.2f} s")
            continue
        times: dict[Callable[..., None], list[float]] = {bare: [], ours: []}
        for _ in range(arguments.repeats + 1):  # the first round warms up
            for run, taken in times.items():
                taken.append(seconds(lambda: run(model, input_ids, mask)))  # noqa: B023
        least, own = (min(taken[1:]) for taken in times.values())
        print(
            f"{name}: bare {least:.2f} s, diverse beam search {own:.2f} s, ratio {own / least:.2f}",
            flush=True,
        )
        if arguments.oracle:
            command = [sys.executable, __file__, "--as-oracle", "--model", name]
            path = os.pathsep.join([arguments.oracle, os.environ.get("PYTHONPATH", "")])
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})


if __name__ == "__main__":
    main()
