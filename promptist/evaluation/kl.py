"""How far a rewrite is from what the SFT model would write: `log pi(y|x) - log pi_ref(y|x)`, in nats.

Of the decoded text y, a deterministic choice of the policy, not a sample of it: the mean over prompts is the penalty
that PPO's reward would charge for these rewrites, and no estimate of KL(pi || pi_ref), whose expectation runs over
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from promptist.data.text import prompt_ids, response_ids
from promptist.decoding.decode import pad_batch
from promptist.errors import UserError
from promptist.models.policy import forward_logprobs
from promptist.optimize import BUCKET, Promptist

BATCH = 8


Pair = tuple[str, list[int], list[int]]
"""x, the tokens of the prompt, those of the rewrite."""


def log_ratios(
    policy: Promptist, reference: Any, reference_tokenizer: Any, rewrites: Mapping[str, str]
) -> dict[str, float]:
    """x -> log-ratio of its rewrite; `rewrites` maps x to y, "" where the policy wrote nothing (EOS alone).

    Summed over the tokens of y and the EOS after it; where y is as long as the policy may write, it was cut and no EOS
    was written. Every forward pass has one of few fixed shapes (`BATCH` rows, prompts padded to multiples of `BUCKET`,
    the longest rewrite): in float32 on a CPU a value depends on its x and y alone. UserError where the two models read
    text differently, and where a rewrite does not fit the reference's positions.
    """
    tokenizer, width = policy.tokenizer, policy.settings.max_new_tokens
    by_length: dict[int, list[Pair]] = {}
    for x, y in rewrites.items():
        prompt, response = prompt_ids(tokenizer, x), response_ids(tokenizer, y)[:width]
        theirs = prompt_ids(reference_tokenizer, x), response_ids(reference_tokenizer, y)[:width]
        if (prompt, response) != theirs:
            raise UserError(
                f"the model and the `reference` split {x[:40]!r} into other tokens, so their log-probabilities cannot "
                "be compared: name the model that this one was trained from, or leave `reference` out"
            )
        room = int(reference.config.max_position_embeddings)
        if len(prompt) + len(response) > room:
            raise UserError(
                f"{x[:40]!r} and its rewrite take {len(prompt) + len(response)} tokens and the `reference` reads "
                f"{room}: name the model that this one was trained from, or leave `reference` out"
            )
        by_length.setdefault(-(-len(prompt) // BUCKET) * BUCKET, []).append((x, prompt, response))
    eos = int(tokenizer.eos_token_id)
    found: dict[str, float] = {}
    for length, group in by_length.items():
        for start in range(0, len(group), BATCH):
            chunk = group[start : start + BATCH]
            ours, theirs_sums = (_sums(model, chunk, length, width, eos) for model in (policy.model, reference))
            found.update({x: a - b for (x, _, _), a, b in zip(chunk, ours, theirs_sums, strict=True)})
    return {x: found[x] for x in rewrites}


@torch.inference_mode()
def _sums(model: Any, chunk: Sequence[Pair], length: int, width: int, eos: int) -> list[float]:
    """log p(y|x) of each pair; rows that fill up the batch repeat the first."""
    rows = [*chunk, *[chunk[0]] * (BATCH - len(chunk))]
    prompts, _ = pad_batch([prompt for _, prompt, _ in rows], BATCH, length, eos)
    responses = torch.full((BATCH, width), eos)
    for row, (_, _, response) in enumerate(rows):
        responses[row, : len(response)] = torch.tensor(response)
    device = next(model.parameters()).device
    logprobs = forward_logprobs(
        model,
        torch.cat([prompts, responses], dim=1).to(device),
        torch.tensor([len(prompt) for _, prompt, _ in rows], device=device),
        torch.tensor([len(response) for _, _, response in rows], device=device),
        width,
    )
    sums: list[float] = logprobs.double().sum(1).tolist()
    return sums[: len(chunk)]
