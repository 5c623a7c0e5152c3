"""A key-value cache of fixed size for decoding many continuations of each prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _Layer(CacheLayerMixin):
    """Keys and values `[rows, heads, capacity, head_dim]` of one attention layer, filled from the left.

    `update` returns a view of the filled part, not of the whole buffer as transformers' StaticCache does:
    attention then reads no empty slots, and nothing is copied as its DynamicCache does at every token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.capacity = -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:  # the prompts, one row each: kept as they are until `expand`
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self.length = key_states.shape[2]
            return key_states, value_states
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def expand(self, copies: int, capacity: int) -> None:
        self.keys, self.values = (
            self._grown(states, copies, capacity) for states in (self.keys, self.values)
        )
        self.capacity = capacity

    def _grown(self, states: Tensor | None, copies: int, capacity: int) -> Tensor:
        assert states is not None
        rows, heads, length, width = states.shape
        grown = states.new_empty(rows, copies, heads, capacity, width)
        grown[:, :, :, :length] = states.unsqueeze(1)
        return grown.view(rows * copies, heads, capacity, width)

    def reorder(self, rows: Tensor, start: int) -> None:
        assert self.keys is not None and self.values is not None
        for states in (self.keys, self.values):
            states[:, :, start : self.length] = states[rows, :, start : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class BeamCache(Cache):
    """The cache of one decoding call: prompts encoded once, then `expand`ed to one row per beam.

    Shapes depend on (prompts, beams, prompt width, max new tokens) alone.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_Layer)

    def expand(self, copies: int, capacity: int) -> None:
        """Repeat every row `copies` times (row b becomes rows b * copies ...) and make room for `capacity`
        tokens."""
        for layer in self.layers:
            layer.expand(copies, capacity)

    def reorder(self, rows: Tensor, start: int) -> None:
        """Row i continues row `rows[i]` (int64 [rows]); tokens before `start` (the prompt) are shared and
        stay."""
        for layer in self.layers:
            layer.reorder(rows, start)


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `allowed` (bool), else the lowest finite number: a row of pads alone then gives no NaN, as
    -inf would."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )
