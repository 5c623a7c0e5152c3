"""One token at a time through a Hugging Face causal language model: what every decoding method stands on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from promptist.decoding.cache import BeamCache, additive_mask
from promptist.errors import UserError


class Steps:
    """Log-probabilities of the next token for `copies` continuations of each of B left-padded prompts.

    `input_ids`, `attention_mask` are `[B, P]`. Each prompt is encoded once; `start()` gives
    log-probabilities `[B, V]` that its copies share, `advance(tokens [B * copies])` those after one more
    token, `[B * copies, V]`. All are float32, whatever the model's dtype. Positions count real tokens from
    0. The masks are always passed in full, even if no prompt has padding: which kernel runs must not depend
    on the other rows.
    """

    def __init__(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, copies: int
    ) -> None:
        _check(model, input_ids, attention_mask, max_new_tokens)
        self.model = model
        self.copies = copies
        self.prompt_width = input_ids.shape[1]
        self.capacity = self.prompt_width + max_new_tokens
        self.cache = BeamCache()
        self._input_ids = input_ids
        self._real = attention_mask.bool()
        self._positions = (attention_mask.long().cumsum(dim=1) - 1).clamp_min(0)
        self._dtype = next(model.parameters()).dtype

    def start(self) -> Tensor:
        width = self.prompt_width
        causal = torch.ones(width, width, dtype=torch.bool, device=self._real.device).tril()
        mask = additive_mask(causal & self._real[:, None, None, :], self._dtype)  # [B, 1, P, P]
        logprobs = self._forward(self._input_ids, mask, self._positions)
        self.cache.expand(self.copies, self.capacity)
        real = self._real.repeat_interleave(self.copies, dim=0)
        generated = real.new_ones(len(real), self.capacity - width)
        self._step_mask = additive_mask(torch.cat([real, generated], dim=1)[:, None, None, :], self._dtype)
        self._next_position = self._positions[:, -1:].repeat_interleave(self.copies, dim=0) + 1
        self._length = width
        return logprobs

    def advance(self, tokens: Tensor) -> Tensor:
        self._length += 1
        logprobs = self._forward(tokens[:, None], self._step_mask[..., : self._length], self._next_position)
        self._next_position = self._next_position + 1
        return logprobs

    def reorder(self, rows: Tensor) -> None:
        """Row i continues what row `rows[i]` has read (int64 [B * copies], within the same prompt)."""
        self.cache.reorder(rows, self.prompt_width)

    def _forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return torch.log_softmax(output.logits[:, -1].float(), dim=-1)


@contextmanager
def decoding_mode(model: Any) -> Iterator[None]:
    """No gradients, no dropout (and no gradient checkpointing, which drops the cache); the model's mode is
    put back."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check(model: Any, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int) -> None:
    if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"prompts {tuple(input_ids.shape)} and mask {tuple(attention_mask.shape)} must both be [B, P]"
        )
    if max_new_tokens < 1:
        raise UserError(f"the number of new tokens is {max_new_tokens}; it must be at least 1")
    implementation = model.config._attn_implementation
    if implementation not in ("sdpa", "eager"):
        raise UserError(
            f"decoding needs attention sdpa or eager, the model has {implementation}; load it with sdpa"
        )
    if not bool(attention_mask[:, -1].all()):
        raise ValueError("prompts must be left-padded: the last column of the mask is not all real tokens")
    longest = int(attention_mask.sum(dim=1).max())
    room = model.config.max_position_embeddings
    if longest + max_new_tokens > room:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new tokens do not fit the model's {room} positions; "
            f"shorten the prompt to {max(room - max_new_tokens, 0)} tokens or ask for fewer new tokens"
        )
