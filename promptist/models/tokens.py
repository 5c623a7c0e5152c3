"""What every loss here needs of a batch of tokens: masks from lengths, log-probabilities, and sums over real
tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TokenSum(NamedTuple):
    """A loss over tokens before its division.

    `total`: scalar with a graph, the sum over real tokens; `count`: scalar, how many there were; `stats`:
    detached scalars, each a sum over the same tokens (so `stats[k] / count` is its mean).
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    stats: dict[str, Tensor]


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """Boolean `[N, width]`, True where the column is below `lengths [N]`. Never derived from token ids: pad
    and EOS are one id."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]


def widen(x: Tensor) -> Tensor:
    """`x` in at least float32: a log-softmax over a vocabulary loses its digits in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """`log softmax(logits)[token]`: logits `[..., V]`, tokens `[...]` -> `[...]` (nats), in at least
    float32."""
    wide = widen(logits)
    chosen = wide.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - wide.logsumexp(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy of the next-token distribution: logits `[..., V]` -> `[...]` (nats)."""
    logprobs = torch.log_softmax(widen(logits), dim=-1)
    # A forbidden token has log-probability -inf and adds 0, where the plain product would be NaN.
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
