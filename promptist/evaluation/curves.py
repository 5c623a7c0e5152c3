"""Training curves of runs, from their `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from promptist.evaluation.figures import Series, curve_svg

Records = Sequence[Mapping[str, Any]]

# Title, and the lines as key in metrics.jsonl -> name in the legend. A plot without any of its keys is left out.
_PLOTS = {
    "sft": [
        ("loss (nats per token)", {"loss": "train", "valid/loss": "validation"}),
        ("gradient norm", {"grad_norm": ""}),
    ],
    "ppo": [
        ("reward", {"score": "score", "reward": "with the KL penalty", "learned": "what is learnt from"}),
        ("aesthetic gain", {"aesthetic": "training", "valid/aesthetic": "validation"}),
        ("relevance", {"relevance": "training", "valid/relevance": "validation"}),
        (
            "CLIP cosine over that of the plain pictures",
            {"cosine_change": "training", "valid/cosine_change": "validation"},
        ),
        ("KL to SFT (nats per rewrite)", {"kl": ""}),
        ("KL coefficient", {"kl_coef": ""}),
        ("score on the validation prompts", {"valid/score": ""}),
        ("length of the rewrite (tokens)", {"length": "training", "valid/length": "validation"}),
        ("share of different additions", {"distinct_suffix": "training", "valid/distinct_suffix": "validation"}),
        ("share of the most frequent addition", {"top_suffix": "training", "valid/top_suffix": "validation"}),
        ("entropy (nats per token)", {"entropy": ""}),
        ("explained variance of the value network", {"explained_variance": ""}),
    ],
}
_STEPS = {"sft": "optimiser step", "ppo": "iteration"}


def kind_of(records: Records) -> str:
    """ "sft" or "ppo", by what the metrics of a run hold."""
    return "sft" if any("loss" in record for record in records) else "ppo"


def plots(kind: str, runs: Sequence[Records], name: str = "") -> list[str]:
    """SVGs of a run of `kind`, `name` in front of their titles; of several trainings of one method, the first line of
    each plot once for every training."""
    found = []
    for title, keys in _PLOTS[kind]:
        if len(runs) == 1:
            lines = [_series(runs[0], key, legend) for key, legend in keys.items()]
        else:
            key = next(iter(keys))
            lines = [_series(records, key, f"training {i}") for i, records in enumerate(runs)]
        lines = [line for line in lines if line.x]
        if lines:
            found.append(curve_svg(f"{name}: {title}" if name else title, _STEPS[kind], lines))
    return found


def _series(records: Records, key: str, name: str) -> Series:
    points = [(float(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), (int, float))]
    return Series([x for x, _ in points], [y for _, y in points], name)
