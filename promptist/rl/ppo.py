"""The mathematics of PPO on response tokens: pure tensor functions, no model, no I/O, no communication.

Layout: every `[N, R]` tensor holds response token `t` of row `n` at `[n, t]`, right-padded; `mask` is True on
real tokens. Both the log-probability of token t and the value of the state *before* token t stand at `[n,
t]`.

Anything that is a mean over tokens is returned as (sum, count), so that a caller can add it up over
micro-batches and ranks and divide once: the global mean is then the same under every split. Ratios of local
means are not.

Sources: Schulman et al. 2017 (PPO, eq. 7 and 9), Schulman et al. 2016 (GAE, eq. 16), Ziegler et al. 2019 (KL
penalty per token), Hao et al. 2023 (section 2.3). Details left open there (whitening, value clipping) follow
trl 0.11.4, the tests' oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor

from promptist.models.tokens import TokenSum, length_mask, token_entropy, token_logprobs

__all__ = [
    "TokenSum",
    "gae",
    "kl_per_token",
    "leave_one_out",
    "length_mask",
    "mean_and_variance",
    "moments",
    "policy_loss",
    "token_entropy",
    "token_logprobs",
    "token_rewards",
    "value_loss",
    "whiten",
]

WHITEN_EPS = 1e-8
"""Added to the variance before the root, as in trl 0.11.4 `masked_whiten`."""


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The k1 estimate `log pi(y_t) - log pi_SFT(y_t)` of the KL divergence from the frozen SFT model, `[N,
    R]` (nats)."""
    _same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs - ref_logprobs


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, lengths: Tensor, kl_coef: float
) -> Tensor:
    """Per-token rewards: `-kl_coef * KL_t`, and the score *added* on the last real token.

    scores `[N]`, logprobs and ref_logprobs `[N, R]`, lengths `[N]` -> `[N, R]`, zero on padding. A response
    cut by the length limit is terminal and no token is invented for it: its score also stands on its last
    real token (Hao et al. 2023, eq. 4; Ziegler et al. 2019). Raises ValueError for a response without a
    token: there is no place for its score.
    """
    width = logprobs.shape[1]
    if bool((lengths < 1).any()) or bool((lengths > width).any()):
        raise ValueError(f"response lengths must lie in 1..{width}, got {lengths.tolist()}")
    mask = length_mask(lengths, width)
    rewards = (-kl_coef * kl_per_token(logprobs, ref_logprobs)).masked_fill(~mask, 0.0)
    last = (lengths - 1).unsqueeze(1)
    return rewards.scatter_add(1, last, scores.to(rewards.dtype).unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: `(advantages, returns)`, both `[N, R]`, zero on padding, not
    whitened.

    `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, V and A zero after the last
    real token, `returns = A + V` (Schulman et al. 2016, eq. 16).
    """
    _same_shape(rewards=rewards, values=values, mask=mask)
    rewards = rewards.masked_fill(~mask, 0.0)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * lam * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return advantages, advantages + values


def leave_one_out(returns: Tensor, group: int) -> Tensor:
    """The advantage of each of N rewrites over the mean of the others of its prompt: `G_i - mean_{j != i} G_j`, `[N]`
    (RLOO: Kool et al. 2019; Ahmadian et al. 2024, eq. 7).

    returns `[N]`: `group` rewrites of one prompt after those of another. Raises ValueError where N does not divide.
    """
    if group < 2 or len(returns) % group:
        raise ValueError(f"{len(returns)} rewrites are no groups of {group}, or too small ones to leave one out")
    of_prompt = returns.view(-1, group)
    others = (of_prompt.sum(dim=1, keepdim=True) - of_prompt) / (group - 1)
    return (of_prompt - others).view(-1)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """`[count, sum, sum of squares]` of the real entries as float64 `[3]`: add (all-reduce) them over chunks
    and ranks, then `whiten`."""
    _same_shape(values=values, mask=mask)
    real = values[mask].double()
    return torch.stack([real.new_tensor(real.numel()), real.sum(), real.square().sum()])


def mean_and_variance(total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance (float64 scalars) from summed `moments`; the variance of a single entry is
    taken as 0."""
    count, first, second = total.unbind()
    if count < 1:
        raise ValueError("no real token to average over")
    mean = first / count
    # The difference of two nearly equal sums may come out just below zero.
    variance = (second - first * mean).clamp_min(0.0) / (count - 1).clamp_min(1.0)
    return mean, variance


def whiten(values: Tensor, mask: Tensor, total: Tensor) -> Tensor:
    """`(values - mean) / sqrt(var + 1e-8)` with the global statistics `total` (see `moments`); zero on
    padding, `[N, R]`."""
    mean, variance = mean_and_variance(total)
    scale = torch.rsqrt(variance + WHITEN_EPS)
    return ((values.double() - mean) * scale).to(values.dtype).masked_fill(~mask, 0.0)


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> TokenSum:
    """Clipped surrogate `max(-A r, -A clip(r, 1 - clip, 1 + clip))`, `r = exp(logprobs - old_logprobs)`
    (Schulman et al. 2017, eq. 7).

    All inputs `[N, R]`; only `logprobs` carries a gradient. Stats: `clip_fraction` (tokens where the clipped
    branch is the greater), `approx_kl` (`(log r)^2 / 2`, to the rollout policy, not to SFT), `ratio`.
    """
    _same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip, 1.0 + clip)
    return TokenSum(
        _masked_sum(torch.maximum(plain, clipped), mask),
        mask.sum(),
        {
            "clip_fraction": _masked_sum((clipped > plain).to(ratio.dtype), mask).detach(),
            "approx_kl": _masked_sum(0.5 * log_ratio.square(), mask).detach(),
            "ratio": _masked_sum(ratio, mask).detach(),
        },
    )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float) -> TokenSum:
    """Clipped value loss `max((v - G)^2, (v_c - G)^2) / 2`, `v_c = v_old + clamp(v - v_old, -clip, clip)`;
    inputs `[N, R]`.

    Stats: `clip_fraction`, `squared_error` (unclipped), `value`.
    """
    _same_shape(values=values, old_values=old_values, returns=returns, mask=mask)
    near = torch.clamp(values, old_values - clip, old_values + clip)
    plain, clipped = (values - returns).square(), (near - returns).square()
    return TokenSum(
        _masked_sum(0.5 * torch.maximum(plain, clipped), mask),
        mask.sum(),
        {
            "clip_fraction": _masked_sum((clipped > plain).to(values.dtype), mask).detach(),
            "squared_error": _masked_sum(plain, mask).detach(),
            "value": _masked_sum(values, mask).detach(),
        },
    )


def _masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0.0).sum()


def _same_shape(**tensors: Tensor) -> None:
    """Broadcasting would turn a forgotten axis into a wrong number instead of an error."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")
