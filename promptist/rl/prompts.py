"""The prompts of an iteration: drawn for all training ranks at once, then sharded."""

from __future__ import annotations

from typing import Any

from promptist.data.order import Order, shard
from promptist.data.prompts import drop_long, read_sources
from promptist.data.text import prompt_ids
from promptist.rl.config import PPOJob
from promptist.rl.rollout import PromptRow, round_up


class PromptStream:
    """All training prompts of a job and the order they come in, a pure function of the run's seed."""

    def __init__(self, job: PPOJob, tokenizer: Any) -> None:
        """Read the files; UserError for missing, empty and broken ones. Prompts over the token limit are left
        out."""
        sources = [
            drop_long(prompts, tokenizer, job.data.max_prompt_tokens, f"prompts of {source.path}")
            for source, prompts in zip(job.data.prompts, read_sources(job.data.prompts), strict=True)
        ]
        self._texts = [prompt.text for prompts in sources for prompt in prompts]
        self._tokenizer = tokenizer
        self.order = Order(
            [len(prompts) for prompts in sources],
            job.ppo.batch // job.ppo.group,
            job.run.seed,
            [source.weight for source in job.data.prompts],
        )

    def batch(self, iteration: int, rank: int, ranks: int) -> tuple[list[PromptRow], int]:
        """This rank's rows of an iteration, and the prompt width of the whole batch in tokens (the same on
        all ranks)."""
        texts = [self._texts[i] for i in self.order.rows(iteration)]
        rows = [PromptRow(row, x, prompt_ids(self._tokenizer, x)) for row, x in enumerate(texts)]
        return list(shard(rows, rank, ranks)), round_up(max(len(row.ids) for row in rows))
