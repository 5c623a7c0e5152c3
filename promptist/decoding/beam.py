"""Beam search and diverse beam search, batched over prompts.

Diverse beam search: Vijayakumar et al. 2016 (arXiv 1610.02424), algorithm 1, with the Hamming diversity
term and the semantics of transformers 4.56.2 `_group_beam_search`. Where it departs from the paper, so does
this:

- the diversity penalty stays in the running score, and so in the final one;
- a group that is done emits pad for the rest of the search, and that pad counts as a chosen token: where
  pad is EOS, every finished group pushes the later ones away from EOS.

One group is plain beam search as in transformers' `_beam_search`. The two differ in one point, `_best_open`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from promptist.decoding.config import DecodingConfig
from promptist.decoding.hypotheses import Hypotheses
from promptist.decoding.steps import Steps

CHECK_EVERY = 4  # steps between two looks at "all done", each of which waits for the device
NEVER = -1e9  # running score of the copies of a group's first beam before they part


class Choice(NamedTuple):
    """What one group, or all of them, chose at one step; S beams per group, 2 S candidates, best first.

    `scores`, `tokens`, `parents` (the beam in the group a candidate continues): `[..., 2 S]`. `order [...,
    S]` are the places of the S best candidates that are not EOS.
    """

    scores: Tensor
    tokens: Tensor
    parents: Tensor
    order: Tensor


def beam_search(
    steps: Steps, config: DecodingConfig, width: int, eos_id: int, pad_id: int, count: int
) -> Hypotheses:
    """The best `count` of the responses of `config.beams` beams: `[B, 1, count]`, up to `width` tokens
    long."""
    logprobs = steps.start()
    prompts, device = len(logprobs), logprobs.device
    groups, size = config.groups, config.group_size
    state = (prompts, groups, size)
    scores = torch.full(state, NEVER, device=device)
    scores[..., 0] = 0.0
    history = torch.full((*state, width), pad_id, device=device)
    done = torch.zeros(state[:2], dtype=torch.bool, device=device)
    found = Hypotheses.empty(*state, width, pad_id, device)
    first_row = torch.arange(0, prompts * config.beams, size, device=device).view(prompts, groups, 1)

    for step in range(width):
        choice = choose(logprobs, scores, done, config, eos_id, pad_id)
        normaliser = float((step + 1) ** config.length_penalty)

        # EOS counts only among the first S candidates: a worse one is no reason to drop a beam that is still open.
        ended = (choice.tokens[..., :size] == eos_id) & ~done.unsqueeze(-1)
        ended_scores = (choice.scores[..., :size].double() / normaliser).masked_fill(~ended, -torch.inf)
        ended_tokens = _continued(history, choice.parents[..., :size])
        ended_tokens[..., step] = eos_id
        found.add(ended_scores, ended_tokens, length=step + 1, ended=True)

        scores = choice.scores.gather(-1, choice.order)
        parents = choice.parents.gather(-1, choice.order)
        history = _continued(history, parents) if size > 1 else history
        history[..., step] = choice.tokens.gather(-1, choice.order).masked_fill(done.unsqueeze(-1), pad_id)
        scores = scores.masked_fill(done.unsqueeze(-1), 0.0)

        full = found.worst > -torch.inf
        hopeless = found.worst >= _best_open(choice, scores, groups).double() / normaliser
        done = done | (full if config.early_stopping else full & hopeless)
        if step + 1 == width or ((step + 1) % CHECK_EVERY == 0 and bool(done.all())):
            break
        if size > 1:
            steps.reorder((first_row + parents).flatten())
        logprobs = steps.advance(history[..., step].flatten())

    open_scores = (scores.double() / float(width**config.length_penalty)).masked_fill(
        done.unsqueeze(-1), -torch.inf
    )
    found.add(open_scores, history, length=width, ended=False)
    return found.best(count)


def choose(
    logprobs: Tensor, scores: Tensor, done: Tensor, config: DecodingConfig, eos_id: int, pad_id: int
) -> Choice:
    """The candidates of every group, one group after the other, each penalised by the tokens of the earlier
    ones.

    Args: `logprobs [B * beams, V]`, or `[B, V]` if all beams of a prompt share them; `scores [B, G, S]` of
    the open beams; `done [B, G]`. Returns a Choice of all groups, `[B, G, 2 S]`.

    A penalty only lowers tokens that earlier groups chose, at most (G - 1) S of them. The 2 S best of a
    beam after the penalty are thus among its (G + 1) S best before it, and the vocabulary is read only once
    for all groups.
    """
    prompts, groups, size = scores.shape
    wide = min((groups + 1) * size, logprobs.shape[-1])
    best, ids = (part.view(prompts, -1, wide) for part in logprobs.topk(wide, dim=-1))
    best = best.expand(prompts, groups * size, wide).unflatten(1, (groups, size))
    ids = ids.expand(prompts, groups * size, wide).unflatten(1, (groups, size))
    chosen = ids.new_empty(prompts, groups * size)
    choices: list[Choice] = []
    for group in range(groups):
        values, tokens = best[:, group], ids[:, group]
        if group:
            earlier = chosen[:, None, None, : group * size]
            values = values - config.diversity_penalty * (tokens.unsqueeze(-1) == earlier).sum(dim=-1)
        total, place = (values + scores[:, group].unsqueeze(-1)).flatten(1).topk(2 * size, dim=1)
        candidates = tokens.flatten(1).gather(1, place)
        order = (candidates == eos_id).byte().argsort(dim=1, stable=True)[:, :size]
        taken = candidates.gather(1, order).masked_fill(done[:, group, None], pad_id)
        chosen[:, group * size : (group + 1) * size] = taken
        choices.append(Choice(total, candidates, place // wide, order))
    return Choice(*(torch.stack(parts, dim=1) for parts in zip(*choices, strict=True)))


def _best_open(choice: Choice, scores: Tensor, groups: int) -> Tensor:
    """The score `[B, G]` a group can still hope to build on.

    Group search takes the best candidate even if it is the EOS that has just been recorded, plain beam
    search the best beam that goes on: so do the two functions of transformers 4.56.2.
    """
    return choice.scores[..., 0] if groups > 1 else scores[..., 0]


def _continued(history: Tensor, parents: Tensor) -> Tensor:
    """The tokens `[B, G, S, T]` of the beams `parents [B, G, S]`, a copy."""
    return history.gather(2, parents.unsqueeze(-1).expand(-1, -1, -1, history.shape[-1]))
