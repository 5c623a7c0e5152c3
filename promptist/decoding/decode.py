"""`decode`: responses to a batch of prompts, by any of the methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from promptist.decoding.beam import beam_search
from promptist.decoding.config import DecodingConfig
from promptist.decoding.sampling import greedy, sample, uniforms
from promptist.decoding.steps import Steps, decoding_mode
from promptist.errors import UserError


class Decoded(NamedTuple):
    """n responses to each of B prompts. Beam methods give them best first, `sample` in the order of the
    draws.

    `sequences [B, n, T]` int64, right-padded to the T = max_new_tokens of the call; `lengths [B, n]` real
    tokens, EOS included; `scores [B, n]` float64 (beam methods: what the search maximises, penalties
    included; else the sum of the model's log-probabilities); `finished [B, n]` bool: ended by EOS, not by
    the length limit.
    """

    sequences: Tensor
    lengths: Tensor
    scores: Tensor
    finished: Tensor


def decode(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    config: DecodingConfig,
    eos_id: int,
    pad_id: int,
    num_return: int,
    keys: Sequence[Sequence[str | int]] | None = None,
) -> Decoded:
    """Decode `num_return` responses of at most `max_new_tokens` tokens to each left-padded prompt.

    Args: `model` a Hugging Face causal LM with attention sdpa or eager (for an engine of ZeRO stage 3 the
    gathered module: ranks may leave at different steps); `input_ids`, `attention_mask` `[B, P]` on its
    device, see `pad_batch`; `keys`, for `sample` only, one tuple of counters per prompt: response j is
    drawn with `rng.generator(*key, j)`. Rows that only pad the batch need none: rows past the last key take
    the first one.

    On CPU float32 a row of the result depends on its own prompt and on the shapes (B, P, max_new_tokens,
    beams) alone, bit for bit. The model's training flag is kept, and no gradient is recorded.

    Raises UserError if the prompt does not fit into the model's positions or a number is out of range.
    """
    with decoding_mode(model):
        return Decoded(
            *_search(
                model, input_ids, attention_mask, max_new_tokens, config, eos_id, pad_id, num_return, keys
            )
        )


def _search(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    width: int,
    config: DecodingConfig,
    eos_id: int,
    pad_id: int,
    count: int,
    keys: Sequence[Sequence[str | int]] | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if (keys is not None) != (config.method == "sample"):
        raise ValueError("keys belong to method sample, which needs them, and to no other")
    most = {"beam": config.beams, "diverse_beam": config.beams, "greedy": 1}.get(config.method, count)
    if not 1 <= count <= most:
        raise UserError(
            f"decoding.method {config.method} can return 1 to {most} responses per prompt, not {count}"
        )
    copies = {"sample": count, "greedy": 1}.get(config.method, config.beams)
    steps = Steps(model, input_ids, attention_mask, width, copies)
    if config.method == "greedy":
        found = greedy(steps, width, eos_id, pad_id)
    elif keys is not None:
        if not 1 <= len(keys) <= len(input_ids):
            raise ValueError(f"{len(keys)} keys for {len(input_ids)} prompts")
        every = [*keys, *[keys[0]] * (len(input_ids) - len(keys))]
        noise = uniforms(every, count, width).to(input_ids.device)
        found = sample(steps, noise, config.temperature, config.top_p, eos_id, pad_id)
    else:
        found = beam_search(steps, config, width, eos_id, pad_id, count)
    return found.tokens[:, 0], found.lengths[:, 0], found.scores[:, 0], found.ended[:, 0]


def pad_batch(rows: Sequence[Sequence[int]], batch: int, length: int, pad: int) -> tuple[Tensor, Tensor]:
    """Left-pad token lists to one fixed shape: `(input_ids, attention_mask)`, both int64 `[batch, length]`.

    Missing rows repeat the first one (drop their results): a fixed shape is what makes a result independent
    of its neighbours. Raises ValueError on no row, too many, an empty one or one longer than `length`.
    """
    if not 1 <= len(rows) <= batch:
        raise ValueError(f"{len(rows)} prompts do not fit a batch of {batch}")
    input_ids = torch.full((batch, length), pad, dtype=torch.long)
    mask = torch.zeros((batch, length), dtype=torch.long)
    for place in range(batch):
        row = rows[place] if place < len(rows) else rows[0]
        if not 1 <= len(row) <= length:
            raise ValueError(f"prompt {place} has {len(row)} tokens; between 1 and {length} fit")
        input_ids[place, length - len(row) :] = torch.tensor(row)
        mask[place, length - len(row) :] = 1
    return input_ids, mask
