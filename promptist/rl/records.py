"""The rollout record: one schema in memory, in parquet files and in checkpoints, and the figures read off a
batch of them.

A record is everything that is known about one rewrite: texts, token ids, what the three networks said about
every token, and the *raw* measurements of every picture. Terms, hinges and weights are applied later
(`promptist/reward/terms.py`), so a recorded batch can be scored again under other weights without painting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np

from promptist.data.modifiers import modifiers

FinishReason = Literal["eos", "length"]


@dataclass
class Rollout:
    """One prompt and the rewrite the policy of `policy_version` gave it.

    `row` is the global place in the iteration's batch (`0..batch-1`, the same under every number of ranks); the
    `ppo.group` rewrites of one prompt stand one after the other.
    The per-token lists have the length of `response_ids`, EOS included (`values` is empty without a value network);
    the per-picture lists the length of
    `ks`, entry i belonging to the noise `ks[i]`. `policy_version` counts finished iterations: 0 is the SFT
    model. Log-probabilities are in nats.
    """

    row: int
    iteration: int
    x: str
    y: str
    prompt_ids: list[int]
    response_ids: list[int]
    finish_reason: FinishReason
    policy_version: int
    ks: list[int]
    logprobs: list[float] = field(default_factory=list)
    ref_logprobs: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    cosine_y: list[float] = field(default_factory=list)
    aesthetic_y: list[float] = field(default_factory=list)
    cosine_x: list[float] = field(default_factory=list)
    aesthetic_x: list[float] = field(default_factory=list)
    picture_y: str | None = None
    picture_x: str | None = None

    @property
    def painted(self) -> str:
        """The text the pictures are made from: an empty rewrite leaves the prompt as it is."""
        return self.y or self.x

    @property
    def kl(self) -> float:
        """`sum_t log pi(y_t) - log pi_SFT(y_t)`, nats: the estimate of KL(policy, SFT) of this one
        rewrite."""
        return float(
            np.sum(np.asarray(self.logprobs, np.float64) - np.asarray(self.ref_logprobs, np.float64))
        )


def suffix(x: str, y: str) -> str:
    """The words of y that x does not have, in order: what the rewrite added (compared without case and
    commas)."""
    known = {word.strip(",.").lower() for word in x.split()}
    words = (word.strip(",.").lower() for word in y.split())
    return " ".join(word for word in words if word and word not in known)


def text_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Figures of a batch that need its texts and token counts only; all are means over rollouts or shares of
    them.

    `kl` is the mean over sequences of the sum over response tokens (nats); `kl_per_token` the mean over all
    tokens; `distinct` the share of different rewrites; `distinct_suffix` the share of different additions (1
    means no two rewrites added the same words); `top_suffix` the share of rewrites that make the most frequent
    addition, as an unordered set of modifiers (adding nothing is one, too).
    """
    n = len(rollouts)
    lengths = [len(r.response_ids) for r in rollouts]
    kl = [r.kl for r in rollouts]
    return {
        "kl": float(np.mean(kl)),
        "kl_per_token": float(np.sum(kl) / np.sum(lengths)),
        "length": float(np.mean(lengths)),
        "empty": sum(not r.y for r in rollouts) / n,
        "eos": sum(r.finish_reason == "eos" for r in rollouts) / n,
        "distinct": len({r.y for r in rollouts}) / n,
        "distinct_suffix": len({suffix(r.x, r.y) for r in rollouts}) / n,
        "top_suffix": max(Counter(modifiers(r.x, r.y) for r in rollouts).values()) / n,
    }


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """One parquet file, a row per rollout in the order of `row`; appears whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {
        "int": pa.int64(),
        "str": pa.string(),
        "FinishReason": pa.string(),
        "str | None": pa.string(),
        "list[int]": pa.list_(pa.int64()),
        # float64 holds a float32 exactly, so a value read back is the value that was used.
        "list[float]": pa.list_(pa.float64()),
    }
    schema = pa.schema([(f.name, kinds[str(f.type)]) for f in fields(Rollout)])
    table = pa.Table.from_pylist([asdict(r) for r in sorted(rollouts, key=lambda r: r.row)], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".tmp")
    pq.write_table(table, part)
    part.replace(path)


def read_rollouts(path: Path) -> list[Rollout]:
    """What `write_rollouts` wrote."""
    import pyarrow.parquet as pq

    return [Rollout(**row) for row in pq.read_table(path).to_pylist()]
