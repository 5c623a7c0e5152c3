"""What a PPO run writes down of itself: metrics of an iteration, the progress line, samples and rollout
files.

Metrics under `time/` differ from run to run; all others are a function of config, seed and number of training
ranks, whatever the number of reward ranks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from promptist.cluster.metrics import progress_line
from promptist.cluster.run_folder import write_atomically
from promptist.reward.terms import Score, TermsConfig, combine, learned_score
from promptist.rl.records import Rollout, text_metrics, write_rollouts


class Stopwatch:
    """Seconds per phase of an iteration."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to phase `name`."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start

    def metrics(self, images: float, painting: Mapping[str, float]) -> dict[str, float]:
        """`time/iteration` and `time/PHASE` in seconds, `time/images_per_s` of all ranks, `time/wait_share`,
        the part of the iteration in which this rank waited for scores, and `time/busy_rank_R`, the part of its
        time in which reward rank R painted. `painting`: the reward client's figures of this rank."""
        whole = max(time.monotonic() - self.started, 1e-9)
        return {
            "time/iteration": whole,
            **{f"time/{name}": seconds for name, seconds in self.seconds.items()},
            "time/images_per_s": images / whole,
            "time/wait_share": painting["reward/waited_s"] / whole,
            **{
                name.replace("reward/", "time/"): share
                for name, share in painting.items()
                if name.startswith("reward/busy_rank_")
            },
        }


def is_due(step: int, every: int) -> bool:
    """Whether something that is done every `every` steps is done after `step`; 0 means never."""
    return every > 0 and step % every == 0


def painting_metrics(of_ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the training ranks' reward clients counted in an iteration: `images` painted, `truncated` prompts
    among them, and `hit_rate` of the cache of plain pictures, the mean over ranks."""
    return {
        "images": sum(figures["reward/images"] for figures in of_ranks),
        "truncated": sum(figures["reward/truncated"] for figures in of_ranks),
        "hit_rate": fmean(figures.get("reward/hit_rate", 0.0) for figures in of_ranks),
    }


def score_of(rollout: Rollout, terms: TermsConfig) -> Score:
    """The score of a measured rollout."""
    return combine(rollout.cosine_y, rollout.aesthetic_y, rollout.aesthetic_x, terms)


def learned_of(rollout: Rollout, terms: TermsConfig) -> float:
    """What training learns from a measured rollout: its score, unless a remedy is on in `reward.terms`."""
    return learned_score(rollout.cosine_y, rollout.aesthetic_y, rollout.cosine_x, rollout.aesthetic_x, terms)


def cosine_change(rollout: Rollout) -> float:
    """How much more relevant to x the pictures of y are than those of x at the same noises: a difference of cosines."""
    return fmean(rollout.cosine_y) - fmean(rollout.cosine_x)


def rollout_metrics(rollouts: Sequence[Rollout], terms: TermsConfig, kl_coef: float) -> dict[str, float]:
    """Means over the measured rollouts of all ranks, in the order of their rows.

    `reward` is the paper's R = score - kl_coef * KL, `score` = `aesthetic` + `relevance`, `cosine` CLIP's of
    x and the pictures of y, `cosine_change` the same less that of x and its own pictures; the others are those
    of `text_metrics`.
    """
    rollouts = sorted(rollouts, key=lambda r: r.row)
    scores = [score_of(r, terms) for r in rollouts]
    text = text_metrics(rollouts)
    score = fmean(s.score for s in scores)
    return {
        "reward": score - kl_coef * text["kl"],
        "score": score,
        "aesthetic": fmean(s.aesthetic for s in scores),
        "relevance": fmean(s.relevance for s in scores),
        "cosine": fmean(fmean(r.cosine_y) for r in rollouts),
        "cosine_change": fmean(map(cosine_change, rollouts)),
        **text,
    }


def line(step: int, total: int, metrics: Mapping[str, float]) -> str:
    """The one progress line of an iteration."""
    shown: dict[str, float | str] = {
        "reward": metrics["reward"],
        "aesthetic": metrics["aesthetic"],
        "relevance": metrics["relevance"],
        "kl": metrics["kl"],
        "length": metrics["length"],
        "distinct": f"{metrics['distinct_suffix']:.0%}",
        "images/s": metrics["time/images_per_s"],
        "waited": f"{metrics['time/wait_share']:.0%}",
    }
    if "valid/score" in metrics:
        shown["valid"] = metrics["valid/score"]
    return progress_line("ppo", step, total, shown, metrics["time/eta_s"] / max(total - step, 1))


def write_samples(folder: Path, step: int, rollouts: Sequence[Rollout], terms: TermsConfig) -> None:
    """`rollouts/step_NNNNNN.samples.jsonl`: texts, pictures (paths below the run folder) and scores of a few
    rollouts."""
    records = [
        {
            "step": step,
            "x": r.x,
            "y": r.y,
            "picture_x": r.picture_x,
            "picture_y": r.picture_y,
            "score": (score := score_of(r, terms)).score,
            "aesthetic": score.aesthetic,
            "relevance": score.relevance,
            "kl": r.kl,
        }
        for r in sorted(rollouts, key=lambda r: r.row)
    ]
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_atomically(folder / "rollouts" / f"step_{step:06d}.samples.jsonl", text)


def write_all(folder: Path, step: int, rollouts: Sequence[Rollout]) -> None:
    """`rollouts/step_NNNNNN.parquet`: every rollout of the iteration that ended with `step`."""
    write_rollouts(folder / "rollouts" / f"step_{step:06d}.parquet", rollouts)
