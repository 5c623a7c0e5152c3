"""The three networks of PPO on a training rank: policy and value under DeepSpeed, and the frozen
reference."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from promptist.models.elastic import read_weights
from promptist.models.engine import build_engine, consolidated_state_dict, gathered, load_engine, save_engine
from promptist.models.policy import export_policy, load_policy, load_reference
from promptist.models.value import load_value
from promptist.rl.config import PPOJob
from promptist.rl.inputs import check_positions


@dataclass
class Networks:
    """All three start from the SFT model in `model.path`; the reference is a copy of its own and never moves.

    `policy` and `value` are DeepSpeed engines with an optimiser and a schedule each, stepped once per epoch. With the
    group baseline there is no value network (None).
    """

    policy: Any
    value: Any | None
    reference: nn.Module
    tokenizer: Any
    device: torch.device

    @classmethod
    def build(cls, job: PPOJob, tokenizer: Any, device: torch.device, accumulation: int) -> Networks:
        """Load and partition (collective). `accumulation`: micro-batches of one rank per optimiser step.

        Raises UserError where the longest prompt and rewrite together do not fit the model's positions.
        """
        steps = job.ppo.iterations * job.ppo.epochs
        policy = load_policy(job.model, job.run.seed)
        check_positions(job, policy.config)
        value = load_value(job.model, job.value, job.run.seed) if job.ppo.baseline == "value" else None
        value_optimizer = job.value_optimizer or job.optimizer
        return cls(
            policy=build_engine(policy, job.optimizer, job.zero, steps, accumulation),
            value=value and build_engine(value, value_optimizer, job.zero, steps, accumulation),
            reference=load_reference(job.model).to(device),
            tokenizer=tokenizer,
            device=device,
        )

    @contextmanager
    def decoder(self) -> Iterator[nn.Module]:
        """The bare policy with whole parameters, in evaluation mode, without gradients. Collective."""
        with torch.no_grad(), gathered(self.policy) as module:
            yield module

    def save(self, folder: Path) -> None:
        """The engines into a checkpoint folder. Collective."""
        save_engine(self.policy, folder / "policy")
        if self.value is not None:
            save_engine(self.value, folder / "value")

    def load(self, folder: Path) -> None:
        """The engines from a checkpoint folder. Collective."""
        load_engine(self.policy, folder / "policy")
        if self.value is not None:
            load_engine(self.value, folder / "value")

    def export(self, folder: Path) -> None:
        """The policy as a Hugging Face folder. Collective; the first rank writes."""
        state = consolidated_state_dict(self.policy)
        if state is not None:
            export_policy(self.policy.module, state, self.tokenizer, folder)

    def export_saved(self, checkpoint: Path, folder: Path) -> None:
        """The policy of a checkpoint folder as a Hugging Face folder; the engines stay as they are. On one rank."""
        state = read_weights(checkpoint / "policy")
        dtype = next(self.policy.module.parameters()).dtype
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
        export_policy(self.policy.module, state, self.tokenizer, folder)
