"""Validation during training: fixed prompts, fixed noises, a fixed length and a decoder without draws.

Two validations of one policy give the same numbers, so their course shows the policy and nothing else.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from promptist.data.order import shard
from promptist.data.prompts import drop_long
from promptist.data.text import decode_response, prompt_ids
from promptist.decoding.decode import decode, pad_batch
from promptist.decoding.pick import PICK_SEED, asked_for, keys_of, place_of
from promptist.reward.client import RewardClient
from promptist.reward.terms import combine
from promptist.rl.collect import gather
from promptist.rl.config import PPOJob
from promptist.rl.inputs import read_valid
from promptist.rl.journal import cosine_change, learned_of
from promptist.rl.networks import Networks
from promptist.rl.records import Rollout, text_metrics
from promptist.rl.rollout import enter_measurements, requests_of, round_up


class Validation:
    """The fixed prompts, this rank's part of them, and how they are scored.

    The prompts are the first `ppo.validation_prompts` different ones of `data.valid`; none is repeated to
    fill up a rank's share. Noises are the keys `0..validation_images-1` of the namespace "valid", which
    training never paints with. The rewrite is the decoder's first or, by `ppo.validation_pick`, the one
    that its text decides.
    """

    def __init__(self, job: PPOJob, tokenizer: Any, rank: int, ranks: int) -> None:
        """Read `data.valid`; UserError if it is missing, empty or broken."""
        longest = job.data.max_prompt_tokens
        found = drop_long(read_valid(job), tokenizer, longest, "validation prompts")
        self.prompts = list(dict.fromkeys(prompt.text for prompt in found))[: job.ppo.validation_prompts]
        rows = [(row, x, prompt_ids(tokenizer, x)) for row, x in enumerate(self.prompts)]
        self._width = round_up(max(len(ids) for _, _, ids in rows))
        self._mine = list(shard(rows, rank, ranks))
        self._job = job

    def __call__(self, nets: Networks, client: RewardClient, step: int) -> dict[str, float]:
        """Rewrite, paint and score: means over the prompts of all ranks, as `valid/...` (collective).

        `valid/score` is the paper's whatever training learns from; `valid/learned` stands beside it where they differ.
        """
        terms = self._job.reward.terms
        mine = self._rewrite(nets, step)
        asked = [client.submit(requests_of(rollout, "valid", keep=False)) for rollout in mine]
        for rollout, tickets in zip(mine, asked, strict=True):
            enter_measurements(rollout, client.collect(tickets))
        client.metrics()  # these pictures are not the next iteration's
        everyone = gather(mine)
        scores = [combine(r.cosine_y, r.aesthetic_y, r.aesthetic_x, terms) for r in everyone]
        text = text_metrics(everyone)
        remedied = {"valid/learned": fmean(learned_of(r, terms) for r in everyone)} if terms.remedied else {}
        return {
            "valid/score": fmean(s.score for s in scores),
            "valid/aesthetic": fmean(s.aesthetic for s in scores),
            "valid/relevance": fmean(s.relevance for s in scores),
            "valid/cosine": fmean(fmean(r.cosine_y) for r in everyone),
            "valid/cosine_change": fmean(map(cosine_change, everyone)),
            **{f"valid/{name}": text[name] for name in ("length", "empty", "eos", "distinct_suffix", "top_suffix")},
            "valid/prompts": len(everyone),
            **remedied,
        }

    def _rewrite(self, nets: Networks, step: int) -> list[Rollout]:
        """The rewrite of each of this rank's prompts, as `promptist optimize` would write it. Every batch has one shape
        (`pad_batch` fills up the last one, its surplus is dropped), so that a rewrite depends on its prompt alone."""
        ppo, eos = self._job.ppo, int(nets.tokenizer.eos_token_id)
        count = asked_for(ppo.validation_pick, ppo.validation_decoding)
        rewritten = []
        with nets.decoder() as model:
            for start in range(0, len(self._mine), ppo.chunk):
                chunk = self._mine[start : start + ppo.chunk]
                ids, mask = pad_batch([ids for _, _, ids in chunk], ppo.chunk, self._width, eos)
                decoded = decode(
                    model,
                    ids.to(nets.device),
                    mask.to(nets.device),
                    ppo.validation_new_tokens,
                    ppo.validation_decoding,
                    eos,
                    eos,
                    count,
                    keys_of(ppo.validation_decoding, PICK_SEED, [x for _, x, _ in chunk]),
                )
                for i, (row, x, tokens) in enumerate(chunk):
                    beam = place_of(ppo.validation_pick, count, PICK_SEED, x)
                    response = decoded.sequences[i, beam, : decoded.lengths[i, beam]].tolist()
                    rewritten.append(
                        Rollout(
                            row=row,
                            iteration=step,
                            x=x,
                            y=decode_response(nets.tokenizer, response),
                            prompt_ids=tokens,
                            response_ids=response,
                            finish_reason="eos" if decoded.finished[i, beam] else "length",
                            policy_version=step,
                            ks=list(range(ppo.validation_images)),
                        )
                    )
        return rewritten
