"""The configuration of a PPO job: its own section `ppo`, the whole job, and the checks that need more than
one section.

Defaults are the paper's (Hao et al. 2023, section 3.1 and tables 6 and 7) where it states a value; what it
leaves open is marked "ours".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from promptist.cluster.checkpoint import CheckpointConfig
from promptist.cluster.metrics import LoggingConfig
from promptist.cluster.roles import RolesConfig
from promptist.cluster.run_folder import RunConfig
from promptist.data.prompts import PromptDataConfig
from promptist.decoding.config import DecodingConfig
from promptist.errors import UserError
from promptist.models.engine import OptimizerConfig, ZeroConfig
from promptist.models.policy import ModelConfig
from promptist.models.value import ValueConfig
from promptist.reward.model import RewardConfig

MAY_CHANGE_ON_RESUME = frozenset({"ppo.keep_rollouts", "reward.deadline_s", "reward.window"})
"""Dotted keys that a resumed run may change beyond those of every job (`promptist/cluster/run_folder.py`):
none changes a number. Any other would make it another experiment and is refused."""


def _paper_decoding() -> DecodingConfig:
    return DecodingConfig(method="diverse_beam", beams=8, groups=8, diversity_penalty=1.0, length_penalty=1.0)


def _demo_decoding() -> DecodingConfig:
    return DecodingConfig(method="beam", beams=8, groups=1, length_penalty=-1.0)


@dataclass
class PPOConfig:
    """The algorithm. One iteration rolls out `batch` prompts and takes `epochs` optimiser steps, each over
    the whole batch.

    `batch` and `validation_prompts` count prompts over all training ranks, `chunk` prompts of one rank
    decoded together; lengths are in tokens. `value_coef` multiplies the value loss: value network and policy
    have separate optimisers, and Adam does not see the scale of a loss, so the coefficient acts only through
    gradient clipping (`optimizer.grad_clip`) and Adam's eps.
    """

    iterations: int = 3000  # "12,000 episodes" read as 12,000 optimiser steps = 3,000 batches x 4 epochs
    batch: int = 512
    chunk: int = 8  # ours
    epochs: int = 4
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 2.3
    kl_coef: float = 0.2
    gamma: float = 1.0
    lam: float = 0.95
    whiten_advantages: bool = True
    new_tokens_min: int = 15
    new_tokens_max: int = 75
    keep_rollouts: bool = False  # ours: one parquet file per iteration
    validate_every: int = 50  # ours, iterations; 0 = only before the first and after the last
    validation_prompts: int = 64  # ours: the first different ones of data.valid
    validation_images: int = 2  # ours, pictures per prompt
    validation_decoding: DecodingConfig = field(default_factory=_demo_decoding)  # as the authors' demo
    validation_new_tokens: int = 75

    def __post_init__(self) -> None:
        counts = "iterations batch chunk epochs new_tokens_min validation_prompts validation_images"
        for name in [*counts.split(), "validation_new_tokens"]:
            if getattr(self, name) < 1:
                raise UserError(f"ppo.{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("clip", "value_clip", "value_coef"):
            if not getattr(self, name) > 0:
                raise UserError(f"ppo.{name} must be above 0, not {getattr(self, name)}.")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"ppo.{name} must lie in 0..1, not {getattr(self, name)}.")
        if not self.kl_coef >= 0:
            raise UserError(f"ppo.kl_coef must not be negative, it is {self.kl_coef}.")
        if self.validate_every < 0:
            raise UserError(
                f"ppo.validate_every must not be negative, it is {self.validate_every}; "
                "0 validates only at both ends."
            )
        if self.new_tokens_max < self.new_tokens_min:
            raise UserError(
                f"ppo.new_tokens_max ({self.new_tokens_max}) is below ppo.new_tokens_min "
                f"({self.new_tokens_min}); give a range from min to max."
            )
        if self.validation_decoding.method == "sample":
            raise UserError(
                "ppo.validation_decoding.method must be beam, diverse_beam or greedy: "
                "a validation that draws is not fixed."
            )


@dataclass
class PPOJob:
    """Everything `python -m jobs.ppo CONFIG` reads."""

    run: RunConfig
    model: ModelConfig
    reward: RewardConfig
    data: PromptDataConfig
    roles: RolesConfig = field(default_factory=RolesConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    value_optimizer: OptimizerConfig | None = None  # null = the policy's
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    decoding: DecodingConfig = field(default_factory=_paper_decoding)
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def per_rank(self, training_ranks: int) -> int:
        """Prompts of one batch that one training rank rolls out and trains on; UserError where the sizes do
        not fit together."""
        ppo, micro = self.ppo, self.zero.micro_batch
        if ppo.batch % training_ranks:
            raise UserError(
                f"ppo.batch = {ppo.batch} does not divide by {training_ranks} training ranks; "
                f"choose a multiple of {training_ranks}."
            )
        local = ppo.batch // training_ranks
        for name, size in (("zero.micro_batch", micro), ("ppo.chunk", ppo.chunk)):
            if local % size:
                raise UserError(
                    f"{name} = {size} does not divide the {local} prompts of each training rank "
                    f"(ppo.batch = {ppo.batch}): batch must be micro-batch x accumulation x training ranks."
                )
        return local
