"""Measurement tables with known properties, for tests of the statistics and of what is said of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from promptist.evaluation.table import Measure, Table, Text

GAINS = {"user": 0.0, "human": 0.3, "sft": 0.0, "ppo": 0.8}


def make_table(
    seed: int = 0, prompts: int = 24, images: int = 3, trainings: int = 1, gains: Mapping[str, float] | None = None,
    spread: float = 0.0, meta: Mapping[str, object] | None = None,
) -> Table:  # fmt: skip
    """Two sets, "in" (2/3) and "out"; human-engineered prompts in the first only; SFT and PPO have `trainings`, between
    which the reward has the standard deviation `spread`. The gain of PPO is real, that of SFT nothing."""
    random = np.random.default_rng(seed)
    luck = {(m, r): spread * random.normal() for m in ("sft", "ppo") for r in range(trainings)}
    table = Table([], [], [], dict(meta or {"painter": "p", "terms": {"slope": 20.0, "offset": 5.6}, "seed": 0}))
    for i in range(prompts):
        x, name = f"thing {i}", "in" if i % 3 else "out"
        for method, gain in (gains or GAINS).items():
            if method == "human" and name == "out":
                continue
            trained = method in ("sft", "ppo")
            for replica in range(trainings if trained else 1):
                y = "" if method == "user" or (method == "ppo" and i == 0) else f"{x}, {method} {replica}, nice"
                table.texts.append(Text(x, name, method, replica, y))
                for k in range(images):
                    cosine = random.normal(0.28, 0.02)
                    change = gain + random.normal(0, 0.3) + luck.get((method, replica), 0.0)
                    relevance = min(20 * cosine - 5.6, 0.0)
                    values = {
                        "cosine": cosine,
                        "relevance": relevance,
                        "aesthetic": 5 + change,
                        "reward": change + relevance,
                    }
                    model = "model" if trained else ""
                    table.measures.extend(
                        Measure(x, name, method, replica, k, metric, value, model) for metric, value in values.items()
                    )
                tokens = 4.0 * (1 + i % 4)
                table.measures.append(Measure(x, name, method, replica, None, "gpt2_tokens", tokens))
    return table


def prompt_means(table: Table, metric: str, method: str, replica: int = 0) -> dict[str, float]:
    """Mean over the seeds by prompt, read off the rows one by one."""
    found: dict[str, list[float]] = {}
    for m in table.measures:
        if (m.metric, m.method, m.replica) == (metric, method, replica):
            found.setdefault(m.prompt, []).append(m.value)
    return {prompt: sum(values) / len(values) for prompt, values in found.items()}
