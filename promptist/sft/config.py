"""The configuration of a supervised fine-tuning job.

Defaults are the paper's (Hao et al. 2023, section 3.1 and table 6); what it leaves open is marked "ours".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from promptist.cluster.checkpoint import CheckpointConfig
from promptist.cluster.metrics import LoggingConfig
from promptist.cluster.run_folder import RunConfig
from promptist.data.pairs import PairDataConfig
from promptist.errors import UserError
from promptist.models.engine import OptimizerConfig, ZeroConfig
from promptist.models.policy import ModelConfig


def _paper_optimizer() -> OptimizerConfig:
    return OptimizerConfig(name="adamw", betas=[0.9, 0.999], weight_decay=0.1)


@dataclass
class SFTConfig:
    """How long to train, and which checkpoint leaves the run."""

    steps: int = 15000
    """Optimiser steps."""
    batch: int = 256
    """Pairs of one step over all ranks, never packed rows."""
    validate_every: int = 500
    """Steps between validations, each a candidate for export; the last step is always validated. Ours."""
    under_fit: float = 0.01
    """The paper takes a "slightly under-fitted" checkpoint and gives no rule. Ours: the earliest validation
    whose loss is at most `(1 + under_fit)` times the best one of the run. 0 is the best itself.
    """

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "validate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"sft.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.under_fit < 1:
            raise UserError(f"sft.under_fit must lie in [0, 1), not {self.under_fit}")


@dataclass
class SFTJob:
    """Everything `python -m jobs.sft CONFIG` reads."""

    run: RunConfig
    model: ModelConfig
    data: PairDataConfig
    sft: SFTConfig = field(default_factory=SFTConfig)
    optimizer: OptimizerConfig = field(default_factory=_paper_optimizer)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def micro_batches(self, ranks: int) -> int:
        """Micro-batches of one step on each of `ranks` ranks; UserError where the sizes do not fit."""
        rows = ranks * self.zero.micro_batch
        if self.sft.batch % rows:
            raise UserError(
                f"sft.batch = {self.sft.batch} is not a multiple of {rows} ({ranks} ranks x micro-batches of "
                f"{self.zero.micro_batch}); change sft.batch, zero.micro_batch or the number of ranks"
            )
        return self.sft.batch // rows
