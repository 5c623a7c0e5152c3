"""From pairs to padded tensors: `prompt | response`, prompts left-padded, responses right-padded, as in a
rollout.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptist.data.pairs import Pair
from promptist.data.text import prompt_ids, response_ids
from promptist.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One tokenised pair; the loss is on `response` alone, which ends with EOS."""

    prompt: list[int]
    response: list[int]
    kind: str

    @property
    def length(self) -> int:
        """Tokens of the whole pair."""
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class Batch:
    """Rows of equal width: `input_ids [N, P + width]`, lengths `[N]`; an empty row has response length 0."""

    input_ids: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    width: int
    kinds: list[str]

    @property
    def layout(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """The arguments of `forward_logprobs` after the model."""
        return self.input_ids, self.prompt_lengths, self.response_lengths, self.width


def tokenise(pairs: Sequence[Pair], tokenizer: Any, max_length: int, where: str) -> list[Example]:
    """Examples of at most `max_length` tokens, in order. Longer pairs are left out and counted in the log.

    A pair cut off in its target would teach rewrites that never end. Raises UserError if none is left.
    """
    examples = [
        Example(prompt_ids(tokenizer, p.source), response_ids(tokenizer, p.target), p.kind) for p in pairs
    ]
    kept = [example for example in examples if example.length <= max_length]
    if not kept:
        raise UserError(f"no pair of {where} fits into data.max_length = {max_length} tokens; raise it")
    if len(kept) < len(examples):
        log.warning(
            "%d of %d pairs of %s are longer than data.max_length = %d tokens and are left out",
            len(examples) - len(kept),
            len(examples),
            where,
            max_length,
        )
    return kept


def deal(examples: Sequence[Example], rank: int, ranks: int, micro_batch: int) -> list[list[Example]]:
    """This rank's micro-batches of a step: rows sorted by length, dealt out in groups of `micro_batch`.

    Neighbours in length share a micro-batch, so that little is padding, and the ranks work on like lengths at
    the same time. The loss is a global mean: who computes which row does not change it. `len(examples)` is a
    multiple of `ranks * micro_batch`.
    """
    ordered = sorted(examples, key=lambda example: example.length)
    groups = [ordered[i : i + micro_batch] for i in range(0, len(ordered), micro_batch)]
    return groups[rank::ranks]


def collate(rows: Sequence[Example], pad: int, device: torch.device) -> Batch:
    """Pad rows into one batch on `device`."""
    prompt_width = max(len(row.prompt) for row in rows)
    width = max(len(row.response) for row in rows)
    ids = [
        [pad] * (prompt_width - len(row.prompt))
        + row.prompt
        + row.response
        + [pad] * (width - len(row.response))
        for row in rows
    ]
    return Batch(
        input_ids=torch.tensor(ids, device=device),
        prompt_lengths=torch.tensor([len(row.prompt) for row in rows], device=device),
        response_lengths=torch.tensor([len(row.response) for row in rows], device=device),
        width=width,
        kinds=[row.kind for row in rows],
    )
