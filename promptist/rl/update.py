"""The update: advantages from scores, then the epochs of PPO over the whole batch.

One optimiser step per epoch and network, over all rollouts of all ranks (the batch is the optimiser's batch,
as in the paper), with gradients accumulated over micro-batches. Every rollout is thus trained on exactly once
per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from promptist.models.engine import global_step
from promptist.models.policy import forward_logprobs
from promptist.models.tokens import TokenSum
from promptist.models.value import forward_values
from promptist.rl import ppo
from promptist.rl.collect import greatest
from promptist.rl.config import PPOConfig
from promptist.rl.networks import Networks
from promptist.rl.rollout import Batch


def assign_advantages(
    batch: Batch, scores: Sequence[float], config: PPOConfig, kl_coef: float
) -> dict[str, float]:
    """Fill in `batch.advantages` and `batch.returns` from the scores of this rank's rollouts (collective).

    Per-token rewards -> GAE -> whitening with the mean and variance over the real tokens of all ranks.
    Returns `explained_variance`, 1 - Var(returns - values) / Var(returns) of the value network before the
    update. With the group baseline every token of a rewrite gets the rewrite's whole return, score - kl_coef * KL,
    less the mean of the others of its prompt; there are no values then, and nothing is returned.
    """
    mask = batch.mask
    rewards = ppo.token_rewards(
        torch.tensor(scores, device=mask.device),
        batch.logprobs,
        batch.ref_logprobs,
        batch.response_lengths,
        kl_coef,
    )
    if config.baseline == "group":
        advantages = ppo.leave_one_out(rewards.sum(dim=1), config.group).unsqueeze(1) * mask
        found = ppo.moments(advantages, mask)
        dist.all_reduce(found)
        batch.advantages = ppo.whiten(advantages, mask, found) if config.whiten_advantages else advantages
        return {}
    advantages, batch.returns = ppo.gae(rewards, batch.values, mask, config.gamma, config.lam)
    found = torch.stack(
        [ppo.moments(x, mask) for x in (advantages, batch.returns, batch.returns - batch.values)]
    )
    dist.all_reduce(found)
    batch.advantages = ppo.whiten(advantages, mask, found[0]) if config.whiten_advantages else advantages
    _, returns_variance = ppo.mean_and_variance(found[1])
    _, error_variance = ppo.mean_and_variance(found[2])
    explained = 1.0 - error_variance / returns_variance if returns_variance > 0 else returns_variance
    return {"explained_variance": float(explained)}


def update(
    nets: Networks, batch: Batch, micro_batch: int, config: PPOConfig, first_step: int
) -> dict[str, float]:
    """Take `config.epochs` steps with both networks, or the policy alone where there is no value network (collective);
    `first_step` numbers them in error messages.

    Returns the mean over the epochs of losses, clip fractions and gradient norms, the learning rates of the
    last step, and `ratio_error`: the greatest |pi_new / pi_old - 1| of any token before the first step, which
    must be 0.
    """
    parts, tokens = batch.split(micro_batch), batch.tokens
    ratio_error = torch.zeros((), device=batch.input_ids.device)

    def policy(part: Batch) -> TokenSum:
        logprobs = forward_logprobs(nets.policy, *part.layout)
        if epoch == 0:
            error = (logprobs.detach() - part.logprobs).exp().sub(1.0).abs().max()
            torch.maximum(ratio_error, error, out=ratio_error)
        return ppo.policy_loss(logprobs, part.logprobs, part.advantages, part.mask, config.clip)

    def value(part: Batch) -> TokenSum:
        assert nets.value is not None
        values = forward_values(nets.value, *part.layout)
        loss = ppo.value_loss(values, part.values, part.returns, part.mask, config.value_clip)
        # Adam does not see the scale of a loss: the coefficient acts through clipping and eps only.
        return TokenSum(
            config.value_coef * loss.total, loss.count, {**loss.stats, "value_loss": loss.total.detach()}
        )

    history: list[dict[str, float]] = []
    for epoch in range(config.epochs):
        step = first_step + epoch
        moved = global_step(nets.policy, parts, policy, tokens, step)
        rates = {"lr": moved.lr}
        history.append(
            {
                "policy_loss": moved.loss,
                "clip_fraction": moved.stats["clip_fraction"],
                "approx_kl": moved.stats["approx_kl"],
                "policy_grad_norm": moved.grad_norm,
            }
        )
        if nets.value is not None:
            valued = global_step(nets.value, parts, value, tokens, step)
            rates["value_lr"] = valued.lr
            history[-1] |= {
                "value_loss": valued.stats["value_loss"],
                "value_clip_fraction": valued.stats["clip_fraction"],
                "value_grad_norm": valued.grad_norm,
            }
    return {
        **{name: sum(stats[name] for stats in history) / len(history) for name in history[0]},
        "ratio_error": greatest(float(ratio_error), batch.input_ids.device),
        **rates,
    }
