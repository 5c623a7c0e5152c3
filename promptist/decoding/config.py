"""How responses are decoded: the `decoding` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from promptist.errors import UserError

METHODS = ("diverse_beam", "beam", "sample", "greedy")


@dataclass
class DecodingConfig:
    """A decoding method and its numbers; `num_return` and `max_new_tokens` belong to the call, not to the
    method.

    `diverse_beam` is Vijayakumar et al. 2016 with the semantics of transformers 4.56.2 `_group_beam_search`
    (the rollouts of Promptist: 8 beams in 8 groups, penalty 1.0), `beam` plain beam search (the authors'
    demo), `sample` draws independent responses, `greedy` takes the most probable token. `beams`, `groups`,
    `diversity_penalty`, `length_penalty` and `early_stopping` matter to the two beam methods only,
    `temperature` and `top_p` to `sample`.
    """

    method: Literal["diverse_beam", "beam", "sample", "greedy"] = "diverse_beam"
    beams: int = 8
    groups: int = 8
    diversity_penalty: float = (
        1.0  # taken off a token's log-probability for each earlier group that chose it this step
    )
    length_penalty: float = 1.0  # score = sum of log-probabilities / length ** length_penalty, EOS counted
    early_stopping: bool = (
        False  # True: a group stops as soon as it holds as many finished responses as beams
    )
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"decoding.method is {self.method!r}; use one of {', '.join(METHODS)}")
        if self.beams < 1:
            raise UserError(f"decoding.beams is {self.beams}; it must be at least 1")
        if self.method == "beam" and self.groups != 1:
            raise UserError(
                f"decoding.groups is {self.groups}, but plain beam search has 1; set it to 1 or use method diverse_beam"
            )
        if self.method == "diverse_beam":
            if self.groups < 2:
                raise UserError(
                    f"decoding.groups is {self.groups}; diverse beam search needs at least 2, or use method beam"
                )
            if self.beams % self.groups:
                raise UserError(
                    f"decoding.beams ({self.beams}) must be a multiple of decoding.groups ({self.groups})"
                )
            if not self.diversity_penalty > 0:
                raise UserError(
                    f"decoding.diversity_penalty is {self.diversity_penalty}; use one above 0, or groups are alike"
                )
        if not self.temperature > 0:
            raise UserError(
                f"decoding.temperature is {self.temperature}; it must be above 0, or use method greedy"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"decoding.top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def group_size(self) -> int:
        """Beams in one group."""
        return self.beams // self.groups
