"""The measurement table of version 1, a row per picture: until job and report use `table.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Row:
    """One image: prompt `x` of `set`, painted by `method` as `rewrite` with noise `k`, and what was measured
    on it.

    `rewrite` may be empty: the method left the prompt alone, and x itself was painted. `cosine` is the CLIP
    cosine of the image with x; `aesthetic` the score of the aesthetic head; `picture` a path relative to the
    evaluation folder.
    """

    prompt: str
    set: str
    method: str
    k: int
    rewrite: str
    cosine: float
    aesthetic: float
    picture: str | None


@dataclass(frozen=True)
class PromptScore:
    """Means over the images of one prompt; `values` has every name in METRICS."""

    prompt: str
    set: str
    method: str
    rewrite: str
    values: dict[str, float]


def prompt_scores(rows: Iterable[Row], slope: float, offset: float) -> list[PromptScore]:
    """Score of every (method, prompt): the training reward without its KL part, averaged over the images.

        relevance = mean_k min(slope * cos_k - offset, 0)
        reward    = mean_k (aes_k(y) - aes_k(x)) + relevance            (Promptist, section 2.2)

    aes_k(x) is read from the row of method "user" with the same prompt and k. `aesthetic` is the absolute
    mean score, not the difference: its paired difference to "user" is the aesthetic part of the reward.

    Raises ValueError where an image has no plain partner, is there twice, or holds a number that is not
    finite.
    """
    rows = list(rows)
    plain = {(r.prompt, r.k): r.aesthetic for r in rows if r.method == "user"}
    groups: dict[tuple[str, str], dict[int, Row]] = {}
    for row in rows:
        images = groups.setdefault((row.method, row.prompt), {})
        if row.k in images:
            raise ValueError(f"image {row.k} of method {row.method} and prompt {row.prompt!r} is there twice")
        if (row.prompt, row.k) not in plain:
            raise ValueError(f"no image {row.k} of the plain prompt {row.prompt!r} to compare {row.method} with")
        if not (np.isfinite(row.cosine) and np.isfinite(row.aesthetic)):
            raise ValueError(f"image {row.k} of method {row.method} and prompt {row.prompt!r} has no finite score")
        images[row.k] = row

    scores = []
    for (method, prompt), by_k in groups.items():
        images_of = [by_k[k] for k in sorted(by_k)]
        cosine = np.array([r.cosine for r in images_of])
        aesthetic = np.array([r.aesthetic for r in images_of])
        gain = aesthetic - np.array([plain[prompt, r.k] for r in images_of])
        relevance = np.minimum(slope * cosine - offset, 0.0)
        values = {
            "reward": float(np.mean(gain) + np.mean(relevance)),
            "aesthetic": float(np.mean(aesthetic)),
            "relevance": float(np.mean(relevance)),
            "cosine": float(np.mean(cosine)),
        }
        scores.append(PromptScore(prompt, images_of[0].set, method, images_of[0].rewrite, values))
    return scores
