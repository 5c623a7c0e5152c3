"""The finished responses of beam search: for every (prompt, group) the best `group_size` seen so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Hypotheses:
    """Finished responses of B prompts in G groups, at most S per group, best first; empty places have score
    -inf.

    `scores [B, G, S]` float64 (sum of float32 log-probabilities / length ** length_penalty: transformers
    4.56.2 keeps them as Python floats), `tokens [B, G, S, T]`, `lengths [B, G, S]` with EOS, `ended [B, G,
    S]` by EOS.
    """

    scores: Tensor
    tokens: Tensor
    lengths: Tensor
    ended: Tensor

    @classmethod
    def empty(
        cls, prompts: int, groups: int, size: int, width: int, pad_id: int, device: torch.device
    ) -> Hypotheses:
        shape = (prompts, groups, size)
        return cls(
            scores=torch.full(shape, -torch.inf, dtype=torch.float64, device=device),
            tokens=torch.full((*shape, width), pad_id, device=device),
            lengths=torch.zeros(shape, dtype=torch.long, device=device),
            ended=torch.zeros(shape, dtype=torch.bool, device=device),
        )

    @property
    def worst(self) -> Tensor:
        """Score of the last kept response `[B, G]`; -inf while the group has room."""
        return self.scores[..., -1]

    def add(self, scores: Tensor, tokens: Tensor, length: int, ended: bool) -> None:
        """Offer S responses per group, all `length` tokens long; a score of -inf means none. The best S stay.

        `scores [B, G, S]` float64, `tokens [B, G, S, T]`.
        """
        size = scores.shape[-1]
        pool = torch.cat([self.scores, scores], dim=-1)
        kept, place = pool.sort(dim=-1, descending=True, stable=True)
        place = place[..., :size]
        self.scores = kept[..., :size]
        both = torch.cat([self.tokens, tokens], dim=-2)
        self.tokens = both.gather(-2, place.unsqueeze(-1).expand(-1, -1, -1, both.shape[-1]))
        self.lengths = torch.cat([self.lengths, torch.full_like(self.lengths, length)], dim=-1).gather(
            -1, place
        )
        self.ended = torch.cat([self.ended, torch.full_like(self.ended, ended)], dim=-1).gather(-1, place)

    def best(self, count: int) -> Hypotheses:
        """The best `count` of all groups, as one group `[B, 1, count]`; of equal scores the later group
        comes first."""
        scores, place = self.scores.flatten(1).flip(1).sort(dim=1, descending=True, stable=True)
        place = (self.scores[0].numel() - 1 - place)[:, :count]
        tokens = self.tokens.flatten(1, 2)
        return Hypotheses(
            scores=scores[:, None, :count],
            tokens=tokens.gather(1, place.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))[:, None],
            lengths=self.lengths.flatten(1).gather(1, place)[:, None],
            ended=self.ended.flatten(1).gather(1, place)[:, None],
        )
