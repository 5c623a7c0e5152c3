"""All prompts of an evaluation as data for the page's script: texts, scores, and one small picture each."""

from __future__ import annotations

import base64
from typing import Any

from tqdm import tqdm

from promptist.evaluation.gallery import Evaluation
from promptist.evaluation.methods import label
from promptist.evaluation.page import script_json
from promptist.evaluation.thumbnails import choose, encode, spread
from promptist.evaluation.words import metric_name

BUDGET = 24_000_000
"""Bytes of the data and the embedded pictures, as base64, together. A picture that does not fit is loaded from its file
beside the page when it is shown."""
_FLOOR = 1_000_000  # for pictures, where the texts alone are as large


def explorer(evaluation: Evaluation, budget: int = BUDGET) -> tuple[str, str]:
    """(data as JSON, thumbnails) of the page's script.

    `data.prompts[i]` is `[x, set, cells]`, a cell for each method: None, or `[mean reward, replicas]`; a replica is
    `[y, scores by seed, picture by seed]`, scores in the order of `data.scores`, pictures as places in `data.pictures`,
    -1 for none. `thumbnails` holds a line of base64 WebP for each of `data.pictures`, empty for those loaded from their
    files: all but those of the first replica and seed.
    """
    table, methods = evaluation.table, evaluation.methods
    seeds = sorted({p.seed for p in table.pictures if p.method in methods})
    place = {path: i for i, path in enumerate(dict.fromkeys(p.path for p in table.pictures if p.method in methods))}
    sets = {name: i for i, name in enumerate(table.sets)}
    prompts = [
        [x, sets[name], [_cell(evaluation, x, method, seeds, place) for method in methods]]
        for x, name in table.set_of.items()
    ]
    first = [
        paths[seeds[0]]
        for (_, method, replica), paths in evaluation.paths.items()
        if method in methods and replica == table.replicas(method)[0] and seeds[0] in paths
    ]
    data = {
        "methods": [[m, label(m)] for m in methods],
        "replicas": [table.replicas(m) for m in methods],
        "sets": table.sets,
        "seeds": seeds,
        "scores": [[metric, metric_name(metric), digits] for metric, digits in evaluation.scores.items()],
        "pictures": [evaluation.link(path) for path in place],
        "prompts": prompts,
    }
    text = script_json(data)
    small = _thumbnails(evaluation, list(dict.fromkeys(first)), max(budget - len(text.encode()), _FLOOR))
    return text, "\n".join(small.get(path, "") for path in place)


def _cell(evaluation: Evaluation, x: str, method: str, seeds: list[int], place: dict[str, int]) -> list[Any] | None:
    replicas = []
    for replica in evaluation.table.replicas(method):
        if (x, method, replica) not in evaluation.rewrites:
            continue
        paths = evaluation.paths.get((x, method, replica), {})
        scores = [
            [_short(evaluation.value(metric, x, method, replica, seed)) for metric in evaluation.scores]
            for seed in seeds
        ]
        pictures = [place[paths[seed]] if seed in paths else -1 for seed in seeds]
        replicas.append([evaluation.rewrites[x, method, replica], scores, pictures])
    return [_short(evaluation.rewards[method].get(x)), replicas] if replicas else None


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _thumbnails(evaluation: Evaluation, paths: list[str], budget: int) -> dict[str, str]:
    """path -> base64; where they do not all fit, those at even distances do."""
    files = [evaluation.folder / path for path in paths]
    size, fit = choose(files, budget)
    chosen = spread(range(len(paths)), fit)
    progress = tqdm(chosen, "small pictures", unit="", mininterval=5, delay=5, disable=None)
    return {paths[i]: base64.b64encode(encode(files[i], size)).decode() for i in progress}
