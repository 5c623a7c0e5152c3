"""The configuration of a PPO job: its own section `ppo`, the whole job, and the checks that need more than
one section.

Defaults are the paper's (Hao et al. 2023, section 3.1 and tables 6 and 7) where it states a value; what it
leaves open is marked "ours".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from promptist.cluster.checkpoint import CheckpointConfig
from promptist.cluster.metrics import LoggingConfig
from promptist.cluster.roles import RolesConfig
from promptist.cluster.run_folder import RunConfig
from promptist.data.prompts import PromptDataConfig
from promptist.decoding.config import DecodingConfig
from promptist.decoding.pick import Pick, check_pick
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
    """The algorithm. One iteration rolls out `batch` rewrites and takes `epochs` optimiser steps, each over
    the whole batch.

    `batch` counts rewrites and `validation_prompts` prompts over all training ranks, `chunk` prompts of one rank
    decoded together; lengths are in tokens. `value_coef` multiplies the value loss: value network and policy
    have separate optimisers, and Adam does not see the scale of a loss, so the coefficient acts only through
    gradient clipping (`optimizer.grad_clip`) and Adam's eps.

    The remedies of docs/remedies.md are off by default. `group` rewrites of each of `batch / group` prompts;
    `baseline: group` takes the mean of a prompt's other rewrites instead of a value network, which is then not built
    (`gamma`, `lam`, `value_coef` and `value_clip` are not read). `kl_schedule: adaptive` moves `kl_coef`, then the
    first one, towards a mean KL of `kl_target` nats per rewrite, within about `kl_horizon` rewrites.
    `diversity_coef`: reward per nat of rarity of a rewrite's addition in the batch. `validation_pick`: which beam
    validation and the exported model take.
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
    validation_pick: Pick = "best"
    group: int = 1
    baseline: Literal["value", "group"] = "value"
    kl_schedule: Literal["constant", "adaptive"] = "constant"
    kl_target: float | None = None
    kl_horizon: float = 10_000.0  # rewrites, as in trl's adaptive controller
    diversity_coef: float = 0.0

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
        check_pick("ppo.validation_pick", self.validation_pick, self.validation_decoding)
        self._check_remedies()

    def _check_remedies(self) -> None:
        if self.group < 1 or self.batch % self.group:
            raise UserError(
                f"ppo.group must be at least 1 and divide ppo.batch, which counts rewrites; they are {self.group} and "
                f"{self.batch}."
            )
        if self.baseline not in ("value", "group"):
            raise UserError(f"ppo.baseline must be value or group, not {self.baseline!r}.")
        if self.baseline == "group" and self.group < 2:
            raise UserError(
                "ppo.baseline = group compares the rewrites of one prompt: set ppo.group to 2 or more."
            )
        if self.kl_schedule not in ("constant", "adaptive"):
            raise UserError(f"ppo.kl_schedule must be constant or adaptive, not {self.kl_schedule!r}.")
        if (self.kl_schedule == "adaptive") != (self.kl_target is not None):
            raise UserError(
                f"ppo.kl_schedule = {self.kl_schedule} and ppo.kl_target = {self.kl_target} do not go together: the "
                "adaptive schedule needs a target in nats per rewrite, the constant one has none (null)."
            )
        if self.kl_target is not None and not (self.kl_target > 0 and self.kl_coef > 0):
            raise UserError(
                f"ppo.kl_target and ppo.kl_coef must be above 0 with the adaptive schedule, not {self.kl_target} and "
                f"{self.kl_coef}."
            )
        if not self.kl_horizon >= self.batch:
            raise UserError(
                f"ppo.kl_horizon counts rewrites and must be at least one batch ({self.batch}), not {self.kl_horizon}."
            )
        if not self.diversity_coef >= 0:
            raise UserError(f"ppo.diversity_coef must not be negative, it is {self.diversity_coef}.")


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

    def __post_init__(self) -> None:
        beams = self.decoding.beams if self.decoding.method in ("beam", "diverse_beam") else 1
        if self.ppo.group > beams and self.decoding.method != "sample":
            raise UserError(
                f"ppo.group = {self.ppo.group} rewrites of a prompt are more than the {beams} that decoding.method "
                f"{self.decoding.method} returns: lower it, or raise decoding.beams."
            )

    def per_rank(self, training_ranks: int) -> int:
        """Rewrites of one batch that one training rank rolls out and trains on; UserError where the sizes do
        not fit together. The rewrites of one prompt stay on one rank."""
        ppo, micro = self.ppo, self.zero.micro_batch
        if ppo.batch // ppo.group % training_ranks:
            prompts = f"ppo.batch = {ppo.batch}"
            if ppo.group > 1:
                prompts = f"ppo.batch / ppo.group = {ppo.batch // ppo.group} prompts"
            raise UserError(
                f"{prompts} does not divide by {training_ranks} training ranks; choose a multiple of {training_ranks}."
            )
        local = ppo.batch // training_ranks
        for name, size, of, what in (
            ("zero.micro_batch", micro, local, "rewrites"),
            ("ppo.chunk", ppo.chunk, local // ppo.group, "prompts"),
        ):
            if of % size:
                raise UserError(
                    f"{name} = {size} does not divide the {of} {what} of each training rank "
                    f"(ppo.batch = {ppo.batch}): batch must be micro-batch x accumulation x training ranks."
                )
        return local
