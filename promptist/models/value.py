"""The value network: a full transformer of its own, started from the SFT model, with an MLP head.

Its parameters are separate from the policy's (Hao et al. 2023, section 2.3), so that the value loss cannot
pull the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from promptist import rng
from promptist.errors import UserError
from promptist.models.policy import ModelConfig, layout, load_trunk
from promptist.models.tokens import length_mask, widen

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ValueConfig:
    """The value head. The paper leaves its initialisation open."""

    head: Literal["mlp"] = "mlp"
    """Linear(h, 2h) - ReLU - Linear(2h, 1), as in the released code."""
    head_init: Literal["zero", "default"] = "zero"
    """Ours: `zero` clears the last layer, so that the first advantages are the rewards; `default` is
    torch's."""

    def __post_init__(self) -> None:
        if self.head != "mlp":
            raise UserError(f"value.head is {self.head!r}; the only head is mlp")
        if self.head_init not in ("zero", "default"):
            raise UserError(f"value.head_init is {self.head_init!r}; use zero or default")


class ValueModel(nn.Module):
    """Trunk and head: the value of the state at chosen columns."""

    def __init__(self, trunk: PreTrainedModel, config: ValueConfig) -> None:
        super().__init__()
        hidden = int(trunk.config.hidden_size)
        self.trunk = trunk
        self.head = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 1)).to(
            trunk.dtype
        )
        if config.head_init == "zero":
            last = self.head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, columns: Tensor
    ) -> Tensor:
        """Values `[N, len(columns)]` read at `columns` of `input_ids [N, L]`, in the model's dtype."""
        hidden = self.trunk(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return self.head(hidden[:, columns]).squeeze(-1)


def load_value(config: ModelConfig, value: ValueConfig, seed: int = 0) -> ValueModel:
    """The value network on the CPU, every block trainable whatever `config.trainable_blocks` says of the
    policy.

    `seed` fixes the head's first layer (and the last with `head_init: default`).
    """
    trunk = load_trunk(config, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "init", "value") % 2**63)
        return ValueModel(trunk, value)


def forward_values(
    model: nn.Module, input_ids: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, width: int
) -> Tensor:
    """The value of the state *before* every response token, `[N, width]` in at least float32, 0 past the
    length.

    Inputs as in `forward_logprobs`: value t and log-probability t are read in the same column, `P - 1 + t`.
    """
    mask, positions, columns = layout(input_ids, prompt_lengths, response_lengths, width)
    values = widen(model(input_ids=input_ids, attention_mask=mask, position_ids=positions, columns=columns))
    return values.masked_fill(~length_mask(response_lengths, width), 0.0)
