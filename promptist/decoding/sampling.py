"""Ancestral sampling with temperature and top-p (Holtzman et al. 2020), and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from promptist import rng
from promptist.decoding.hypotheses import Hypotheses
from promptist.decoding.steps import Steps

CHECK_EVERY = 4  # steps between two looks at "all ended", each of which waits for the device


def uniforms(keys: Sequence[Sequence[str | int]], count: int, width: int) -> Tensor:
    """One uniform number in [0, 1) per prompt, response and token: float64 `[B, count, width]`.

    A pure function of the prompt's key, the response's number and the token's, so neighbours in the batch
    change nothing.
    """
    draws = [[rng.generator(*key, response).random(width) for response in range(count)] for key in keys]
    return torch.from_numpy(np.asarray(draws, dtype=np.float64))


def draw(logprobs: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Tokens `[N]` by inverting the cumulative distribution of softmax(logprobs `[N, V]` / temperature) at
    `uniform [N]`.

    With top_p < 1 the draw is from the smallest set of most probable tokens whose mass reaches top_p.
    """
    probabilities = torch.softmax(logprobs.double() / temperature, dim=-1)
    if top_p < 1:
        probabilities, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    target = uniform.unsqueeze(-1) * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True).clamp_max(logprobs.shape[-1] - 1)
    return (tokens.gather(-1, place) if top_p < 1 else place).squeeze(-1)


def sample(
    steps: Steps, noise: Tensor, temperature: float, top_p: float, eos_id: int, pad_id: int
) -> Hypotheses:
    """Draw `noise.shape[1]` responses per prompt with the uniforms `noise [B, n, T]`: `[B, 1, n]`, in the
    order of the draws.

    The score is the sum of the model's own log-probabilities, before temperature and top-p.
    """
    _, count, width = noise.shape

    def pick(logprobs: Tensor, step: int) -> Tensor:
        return draw(logprobs, noise[..., step].flatten(), temperature, top_p)

    return _walk(steps, pick, count, width, eos_id, pad_id)


def greedy(steps: Steps, width: int, eos_id: int, pad_id: int) -> Hypotheses:
    """The most probable token at every step: `[B, 1, 1]`; the score is the sum of log-probabilities."""
    return _walk(steps, lambda logprobs, step: logprobs.argmax(dim=-1), 1, width, eos_id, pad_id)


def _walk(
    steps: Steps, pick: Callable[[Tensor, int], Tensor], count: int, width: int, eos_id: int, pad_id: int
) -> Hypotheses:
    logprobs = steps.start().repeat_interleave(count, dim=0)
    rows, device = len(logprobs), logprobs.device
    tokens = torch.full((rows, width), pad_id, device=device)
    scores = torch.zeros(rows, dtype=torch.float64, device=device)
    lengths = torch.zeros(rows, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for step in range(width):
        token = pick(logprobs, step)
        scores += logprobs.gather(1, token.unsqueeze(1)).squeeze(1).masked_fill(ended, 0.0)
        lengths += ~ended
        tokens[:, step] = token.masked_fill(ended, pad_id)
        ended = ended | (token == eos_id)
        if step + 1 == width or ((step + 1) % CHECK_EVERY == 0 and bool(ended.all())):
            break
        logprobs = steps.advance(tokens[:, step])
    parts = (part.unflatten(0, (rows // count, 1, count)) for part in (scores, tokens, lengths, ended))
    return Hypotheses(*parts)
