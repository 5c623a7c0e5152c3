"""Rolling out: prompts of an iteration -> rewrites, image requests, and what the three networks say about
every token.

The rewrites come from diverse beam search and one beam is picked at random (Hao et al. 2023, section 2.3), so
they are not samples of the policy. Their log-probabilities are computed afterwards by the same forward pass,
in the same shapes, as in the update: the probability ratio is then exactly 1 before the first step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from promptist import rng
from promptist.data.text import decode_response
from promptist.decoding.config import DecodingConfig
from promptist.decoding.decode import decode, pad_batch
from promptist.models.policy import layout
from promptist.models.tokens import length_mask, token_entropy, token_logprobs
from promptist.models.value import forward_values
from promptist.reward.messages import ImageRequest, Measurement
from promptist.reward.terms import noise_keys
from promptist.rl.config import PPOJob
from promptist.rl.networks import Networks
from promptist.rl.records import Rollout

WIDTH_STEP = 8
"""Widths are rounded up to a multiple of this many tokens: few different shapes, little padding."""


@dataclass(frozen=True)
class PromptRow:
    """A prompt in its place among those of the iteration, of all ranks."""

    row: int
    x: str
    ids: list[int]


@dataclass
class Batch:
    """The rollouts of one rank as tensors on the device, in the layout of `promptist/rl/ppo.py`.

    `input_ids [N, P+R]`: prompts left-padded, responses right-padded; lengths `[N]`; the others `[N, R]`,
    zero on padding.
    """

    input_ids: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    width: int  # R
    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool `[N, R]`, True on real response tokens."""
        return length_mask(self.response_lengths, self.width)

    @property
    def tokens(self) -> int:
        """Real response tokens."""
        return int(self.response_lengths.sum())

    @property
    def layout(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """What the networks' forward passes take."""
        return self.input_ids, self.prompt_lengths, self.response_lengths, self.width

    def split(self, size: int) -> list[Batch]:
        """Micro-batches of `size` rows, in order, as views: what is written into one is written here."""
        return [
            Batch(**{k: v if k == "width" else v[start : start + size] for k, v in vars(self).items()})
            for start in range(0, len(self.input_ids), size)
        ]


def roll_out(
    nets: Networks, job: PPOJob, iteration: int, rows: Sequence[PromptRow], prompt_width: int, new_tokens: int
) -> Generator[list[Rollout], None, None]:
    """Decode this rank's `rows` in chunks of one shape and pick one beam of each at random, or `ppo.group` different
    ones, which share the prompt's noises.

    Yields the rollouts of each chunk as soon as they are there, so that their pictures can be asked for while
    the next chunk is decoded. `prompt_width`: columns of the padded prompts; `new_tokens`: the iteration's
    length limit, EOS included. Collective over the training ranks.
    """
    tokenizer, seed = nets.tokenizer, job.run.seed
    eos = int(tokenizer.eos_token_id)
    terms, sampling, group = job.reward.terms, job.decoding.method == "sample", job.ppo.group
    with nets.decoder() as model:
        for start in range(0, len(rows), job.ppo.chunk):
            chunk = rows[start : start + job.ppo.chunk]
            input_ids, mask = pad_batch([row.ids for row in chunk], job.ppo.chunk, prompt_width, eos)
            decoded = decode(
                model,
                input_ids.to(nets.device),
                mask.to(nets.device),
                new_tokens,
                job.decoding,
                eos,
                eos,
                candidates(job.decoding, group),
                keys=[(seed, "sample", iteration, row.row) for row in chunk] if sampling else None,
            )
            sequences, ends, ended = (
                x.tolist() for x in (decoded.sequences, decoded.lengths, decoded.finished)
            )
            rollouts = []
            for i, row in enumerate(chunk):
                ks = noise_keys(seed, iteration, row.row, images=terms.images, bank=terms.bank)
                beams = pick_beams(len(ends[i]), group, seed, iteration, row.row)
                for place, beam in enumerate(beams):
                    response = sequences[i][beam][: ends[i][beam]]
                    rollouts.append(
                        Rollout(
                            row=row.row * group + place,
                            iteration=iteration,
                            x=row.x,
                            y=decode_response(tokenizer, response),
                            prompt_ids=row.ids,
                            response_ids=response,
                            finish_reason="eos" if ended[i][beam] else "length",
                            policy_version=iteration,
                            ks=ks,
                        )
                    )
            yield rollouts


def candidates(decoding: DecodingConfig, group: int) -> int:
    """How many rewrites of a prompt the pick is made from: all beams, as many samples as are wanted, or the one
    greedy response."""
    return {"beam": decoding.beams, "diverse_beam": decoding.beams, "sample": group}.get(decoding.method, 1)


def pick_beams(count: int, group: int, seed: int, iteration: int, row: int) -> list[int]:
    """Places of the `group` beams, of `count`, that prompt `row` of the iteration is rolled out with, all different."""
    if group == 1:
        return [rng.integer(0, count - 1, seed, "pick-beam", iteration, row)]
    return [int(beam) for beam in rng.permutation(count, seed, "pick-beams", iteration, row)[:group]]


def requests_of(rollout: Rollout, namespace: str, keep: bool) -> list[ImageRequest]:
    """The pictures of one rollout, those of y first, then those of x under the same noises; `keep` the first
    of each."""
    return [
        ImageRequest(text, rollout.x, namespace, k, keep_picture=keep and i == 0)
        for text in (rollout.painted, rollout.x)
        for i, k in enumerate(rollout.ks)
    ]


def enter_measurements(rollout: Rollout, measured: Sequence[Measurement]) -> None:
    """Write the answers to `requests_of` into the record."""
    of_y, of_x = measured[: len(rollout.ks)], measured[len(rollout.ks) :]
    rollout.cosine_y = [m.cosine for m in of_y]
    rollout.aesthetic_y = [m.aesthetic for m in of_y]
    rollout.cosine_x = [m.cosine for m in of_x]
    rollout.aesthetic_x = [m.aesthetic for m in of_x]
    rollout.picture_y, rollout.picture_x = of_y[0].picture, of_x[0].picture


def tensors_of(
    rollouts: Sequence[Rollout], prompt_width: int, width: int, pad: int, device: torch.device
) -> Batch:
    """The rollouts as a batch whose per-token figures are still zero."""
    prompts, _ = pad_batch([r.prompt_ids for r in rollouts], len(rollouts), prompt_width, pad)
    responses = torch.full((len(rollouts), width), pad, dtype=torch.long)
    for i, r in enumerate(rollouts):
        responses[i, : len(r.response_ids)] = torch.tensor(r.response_ids)
    per_token = {
        name: torch.zeros(len(rollouts), width, device=device)
        for name in ("logprobs", "ref_logprobs", "values", "entropy", "advantages", "returns")
    }
    return Batch(
        input_ids=torch.cat([prompts, responses], dim=1).to(device),
        prompt_lengths=torch.tensor([len(r.prompt_ids) for r in rollouts], device=device),
        response_lengths=torch.tensor([len(r.response_ids) for r in rollouts], device=device),
        width=width,
        **per_token,
    )


@torch.no_grad()
def ask_networks(nets: Networks, batch: Batch, micro_batch: int) -> Iterator[None]:
    """Fill in log-probabilities of policy and reference, entropies and values, one micro-batch per step of
    the iterator.

    Micro-batches are those of the update. Collective under ZeRO-3.
    """
    for part in batch.split(micro_batch):
        part.logprobs[:], part.entropy[:] = logprobs_and_entropy(nets.policy, *part.layout)
        part.ref_logprobs[:], _ = logprobs_and_entropy(nets.reference, *part.layout)
        if nets.value is not None:
            part.values[:] = forward_values(nets.value, *part.layout)
        yield


def enter_tokens(rollouts: Sequence[Rollout], batch: Batch, valued: bool = True) -> None:
    """Copy what the networks said about each token from the tensors into the records; `valued`: a value network is
    among them."""
    for name in ("logprobs", "ref_logprobs", *(["values"] if valued else [])):
        for rollout, figures in zip(rollouts, getattr(batch, name).tolist(), strict=True):
            setattr(rollout, name, figures[: len(rollout.response_ids)])


def logprobs_and_entropy(
    model: nn.Module, input_ids: Tensor, prompt_lengths: Tensor, response_lengths: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """`forward_logprobs` and the entropy of the same predictions, both `[N, width]`, zero on padding."""
    mask, positions, keep = layout(input_ids, prompt_lengths, response_lengths, width)
    logits = model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep, use_cache=False
    ).logits
    padding = ~length_mask(response_lengths, width)
    logprobs = token_logprobs(logits, input_ids[:, -width:]).float().masked_fill(padding, 0.0)
    return logprobs, token_entropy(logits).float().masked_fill(padding, 0.0)


def round_up(length: int) -> int:
    """The width a batch with sequences of up to `length` tokens gets."""
    return -(-length // WIDTH_STEP) * WIDTH_STEP
